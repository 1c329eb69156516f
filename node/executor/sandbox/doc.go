// Package sandbox runs functions of a host's Python, contained, in processes that survive the node's daemon.
//
//  1. New makes a Backend; Prepare looks for the runtime that the task names and writes the runner's files.
//  2. Start takes an idle sandbox of the same tenant and spec, or starts a shim: a process of its own (RunShim),
//     which outlives the daemon, one for each sandbox. A sandbox never serves another tenant or spec.
//  3. The shim copies the code, makes the cgroups, starts bubblewrap (bwrap.go) and in it the init (RunInit), which
//     sets Landlock (landlock.go) and seccomp (seccomp.go) and becomes python. When the daemon is root, all of that
//     runs as a user of the sandbox's own.
//  4. Daemon and shim, shim and python speak frames (frame.go). The shim keeps the run's state: it hands inputs out,
//     writes what they returned and wrote below Task.OutDir, keeps the log, and ends what breaks a limit (work.go).
//  5. At the end of a lease the shim writes an exit file. A daemon that comes back finds its shims by their sockets,
//     and what ended meanwhile by that file (Reattach).
//  6. Probe runs hostile programs in a real sandbox and looks from the outside whether they got anywhere.
//
// Only node's wiring imports it, and the binary, for its hidden commands. It imports executor and protocol.
//
// It guarantees: code sees the host's /usr read-only, its own files and its mounts; no network, no process, no
// socket, no other file of the host; memory, processes, disk, time and output are bounded, by cgroups where the
// machine lets us make them, else by rlimits and a watchdog. It does not guarantee a kernel of its own: the level is
// shared.
package sandbox
