//go:build system

package gridbeam_test

import "time"

func init() { wholeSeeds = 50 }

func init() { matchSize, matchPause = 200, time.Hour }
