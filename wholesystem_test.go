//go:build system

package gridbeam_test

func init() { wholeSeeds = 50 }
