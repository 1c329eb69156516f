package main

import "syscall"

// ownGroup keeps a Ctrl-C on the terminal from the child, ours to pass on, and ends it when we end.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
