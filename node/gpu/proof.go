package gpu

import (
	"bufio"
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Verdict is what a test of a GPU has found.
type Verdict string

// The verdicts.
const (
	Passed Verdict = "passed" // Passed: its memory took and gave back all that was written.
	Failed Verdict = "failed" // Failed: it did not, or the driver hung, crashed or refused.
	Unable Verdict = "unable" // Unable: nothing here can have it compute, which says nothing of the GPU.
)

// Proof is the result of having a GPU compute in a process of its own: memory is allocated, filled with patterns and read
// back (discovery.md 1). It never ran on a real GPU yet; see docs/hardware.
type Proof struct {
	// Verdict is what was found, Why in words; Why is empty for Passed.
	Verdict Verdict `json:"verdict"`
	// Why is the reason in words.
	Why string `json:"why,omitempty"`
	// Bytes of memory were filled and read back, with each pattern.
	Bytes uint64 `json:"bytes,omitempty"`
	// At is when it ended, TookMs how long it took in milliseconds.
	At time.Time `json:"at"`
	// TookMs is how long it took, in milliseconds.
	TookMs int64 `json:"took_ms"`
	// Again is when it is tried again; zero when that is not intended.
	Again time.Time `json:"again,omitzero"`
}

// Bounds of a test (discovery.md 1).
const (
	proofTime  = 10 * time.Second // of the whole child
	proofGrace = 2 * time.Second  // for a killed one to be gone
	proofBytes = 64 << 20         // of memory at the most
	proofLines = 16 << 10         // of what a child may say
)

// The words that the child says, one a line: where it is, and at last a verdict.
const (
	sayAt     = "at "     // and a function of the driver
	sayPassed = "passed " // and a number of bytes
	sayFailed = "failed " // and why
	sayUnable = "unable " // and why
)

// readProof reads what a child has said: its verdict, if it came to one, and where it was last. What it says beside is not
// looked at: the driver's library may print, too.
func readProof(said []byte) (p Proof, at string, ok bool) {
	lines := bufio.NewScanner(bytes.NewReader(said[:min(len(said), proofLines)]))
	for lines.Scan() {
		line := strings.ToValidUTF8(lines.Text(), "?")
		if where, is := strings.CutPrefix(line, sayAt); is {
			at = clip(where, 64)
		}
		if n, is := strings.CutPrefix(line, sayPassed); is {
			if bytes, err := strconv.ParseUint(n, 10, 64); err == nil && bytes > 0 && bytes <= proofBytes {
				p, ok = Proof{Verdict: Passed, Bytes: bytes}, true
			}
		}
		if why, is := strings.CutPrefix(line, sayFailed); is && why != "" {
			p, ok = Proof{Verdict: Failed, Why: clip(why, 512)}, true
		}
		if why, is := strings.CutPrefix(line, sayUnable); is && why != "" {
			p, ok = Proof{Verdict: Unable, Why: clip(why, 512)}, true
		}
	}
	return p, at, ok
}

// judgeProof is the verdict of a child that has ended: how says in which way, empty for an orderly end; noise is what it
// wrote beside.
func judgeProof(said []byte, how, noise string) Proof {
	p, at, ok := readProof(said)
	if how == "" && ok {
		return p
	}
	if at == "" {
		at = "its start"
	}
	why := fmt.Sprintf("the test ended at %s without a verdict", at)
	if how != "" {
		why = fmt.Sprintf("the test %s at %s", how, at)
	}
	if noise != "" {
		why += ": " + noise
	}
	return Proof{Verdict: Failed, Why: clip(why, 512)}
}
