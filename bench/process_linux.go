package main

import "syscall"

// ownGroup keeps a Ctrl-C on the terminal from the child and ends it when the driver is killed.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
