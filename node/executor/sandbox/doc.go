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
// A sandbox serves one tenant and one spec, and is thrown away with all that was written in it: what an input leaves behind
// no other tenant or job ever sees. The inputs of one sandbox, which run the same code, share on purpose what a machine of
// their own would give them: files below /tmp, /dev/shm, the code's directory and writable mounts, one user ID, and so the
// power to end each other. The code's directory can be written, so what one changes there a later one may import. Not
// shared: memory, arguments, results, and what is printed, each of which goes to the runner by descriptors that others can
// neither hold nor open. What another program prints that an input starts is the exception: such a program can be looked
// into by inputs that run at the same time, as can one that has begun a new interpreter, until it has closed its door.
//
// Without cgroups (soft) memory counts by what processes and files in memory have; what the kernel keeps for sockets and
// pipes does not, nor does a file that lies in the queue of a socket and that nobody else holds, there and for the disk.
//
// It guarantees: code sees the host's /usr read-only, its own files and its mounts; no network, no process, no
// socket, no other file of the host (mountinfo names the directories that its mounts come from); memory, processes, disk, time and output are bounded, by cgroups where the
// machine lets us make them, else by rlimits and a watchdog. It does not guarantee a kernel of its own: the level is
// shared.
package sandbox
