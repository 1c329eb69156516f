// Package python holds what a sandbox runs in the host's Python: the runner, which calls a user's function once for
// each input, and the shim, which stands for Beam's own package inside.
//
//  1. The sandbox writes Files to a directory that it mounts read-only, and starts runner.py with a socket as
//     descriptor 3.
//  2. The runner's own text says what travels on that socket.
//  3. User code imports beta9 or beam and gets the packages below shim.
//
// node/executor/sandbox imports this package; it imports nothing. The files are Python of the standard library, for
// versions from 3.9 on.
package python

import "embed"

// Files are runner.py with its package gridbeam_runner and, below shim, the packages beta9 and beam.
//
//go:embed runner.py gridbeam_runner/*.py shim/*/*.py
var Files embed.FS
