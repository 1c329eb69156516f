//go:build !linux || !cgo

package gpu

import "os"

// RunProof is the body of the child process that has a GPU compute: this build cannot, and says so.
func RunProof([]string) error {
	_, err := os.Stdout.WriteString(sayUnable + "this gridbeam was built without cgo, or not for Linux\n")
	return err
}
