//go:build !linux

package main

import "syscall"

// ownGroup keeps a Ctrl-C on the terminal from the child, ours to pass on.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
