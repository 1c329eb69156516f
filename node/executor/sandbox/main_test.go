//go:build linux

package sandbox

import (
	"context"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// testContext is that of the daemons of the tests, which end by being killed.
var testContext = context.Background()

// TestMain is also the shim, the init and the daemon of the tests, which start this binary again.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 {
		var err error
		switch os.Args[1] {
		case "shim":
			err = RunShim(context.Background(), os.Args[2:])
		case "sandbox-init":
			err = RunInit(os.Args[2:])
		case "daemon":
			err = daemon(os.Args[2])
		default:
			goleak.VerifyTestMain(m)
			return
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}
