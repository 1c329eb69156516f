// Command gridbeam is the whole of gridbeam in one binary: a node, a bridge, the client of its API, the
// directory's client and a demonstration network.
//
// Every command is the same four steps: parse flags, open, run, exit code (architecture.md 4.13 and 7). Flags
// have one name everywhere: --join, --data, --config-dir, --output. Long work shows a progress bar on a
// terminal and plain lines elsewhere.
//
// Exit codes: 0 ok · 1 failed · 2 usage or bad input · 3 nothing matched · 4 goal missed · 5 not connected.
package main
