//go:build linux

package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

// firstChecks come before all others.
var firstChecks []unix.SockFilter

// thisArch are allowed calls that only this architecture has under that name.
var thisArch = []uint32{unix.SYS_FSTATAT}
