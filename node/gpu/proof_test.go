//go:build linux && cgo

package gpu

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// proofCommand makes the test binary the child that has a GPU compute.
const proofCommand = "gpu-proof"

// fakeUUID is the UUID of the device that the fake library has.
const fakeUUID = "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"

// fakeCUDA builds a library that stands for the driver's, with a fault.
func fakeCUDA(t *testing.T, flags ...string) string {
	t.Helper()
	cc, err := exec.LookPath("cc")
	if err != nil {
		if cc, err = exec.LookPath("gcc"); err != nil {
			t.Skip("no C compiler is here to build a libcuda.so.1 that misbehaves: apt-get install gcc")
		}
	}
	path := filepath.Join(t.TempDir(), "libcuda.so.1")
	args := append([]string{"-shared", "-fPIC", "-O1", "-w", "-o", path}, flags...)
	if out, err := exec.CommandContext(t.Context(), cc, append(args, "testdata/fakecuda/fake.c")...).CombinedOutput(); err != nil {
		t.Fatalf("building the fake: %v\n%s", err, out)
	}
	return path
}

func newProver(t *testing.T, library string) *Prover {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := NewProver([]string{self, proofCommand}, library)
	p.patient = 30 * time.Second // the race detector and others slow it down
	return p
}

// noChild fails when a child of this process is left.
func noChild(t *testing.T) {
	t.Helper()
	if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); !errors.Is(err, syscall.ECHILD) {
		t.Errorf("a child is left: %d, %v", pid, err)
	}
}

func TestARealChildTellsGoodDriversFromBadOnes(t *testing.T) {
	for _, c := range []struct {
		name, fault string
		uuid        string
		verdict     Verdict
		why         string
	}{
		{"a good one", "NONE", fakeUUID, Passed, ""},
		{"one that prints", "NOISY", fakeUUID, Passed, ""},
		{"a slice, and nothing of our environment", "NOSY", "MIG-11111111-2222-3333-4444-555555555555", Passed, ""},
		{"little memory", "SMALL", fakeUUID, Passed, ""},
		{"a bit that flips", "CORRUPT", fakeUUID, Failed, "1 of 16777216 words are wrong, the first at word 1024: 0x"},
		{"a bit that is stuck", "STUCKBIT", fakeUUID, Failed, "the first at word 16777215: 0x10000000, not 0x00000000"},
		{"a broken address", "SPREAD", fakeUUID, Failed, "words are wrong, the first at word 1024"},
		{"copies that do nothing", "LAZY", fakeUUID, Failed, "16777216 of 16777216 words are wrong"},
		{"a crash", "CRASH", fakeUUID, Failed, "the test crashed (segmentation fault) at cuMemAlloc_v2"},
		{"an end", "EXITS", fakeUUID, Failed, "the test ended with exit status 7 at cuMemFree_v2: the driver gives up"},
		{"no device", "NODEVICE", fakeUUID, Failed, "cuInit: CUDA_ERROR_NO_DEVICE (100)"},
		{"two devices", "TWO", fakeUUID, Failed, "CUDA shows 2 devices"},
		{"another device", "OTHER", fakeUUID, Failed, "another device under its UUID"},
		{"a device that is taken", "REFUSES", fakeUUID, Failed, "cuDevicePrimaryCtxRetain: CUDA_ERROR_DEVICE_UNAVAILABLE (46)"},
		{"full memory", "FULL", fakeUUID, Failed, "its memory is full: 4096 of 1073741824 bytes are free"},
		{"an error that comes late", "LATE", fakeUUID, Failed, "cuCtxSynchronize: CUDA_ERROR_LAUNCH_FAILED (719)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("HOME", "/nowhere") // the child is not to see it
			p := newProver(t, fakeCUDA(t, "-DFAULT="+c.fault))
			got := p.Prove(t.Context(), c.uuid)
			if got.Verdict != c.verdict || !strings.Contains(got.Why, c.why) || c.why == "" && got.Why != "" || got.At.IsZero() {
				t.Errorf("%+v, want %s: %s", got, c.verdict, c.why)
			}
			if want := map[string]uint64{"SMALL": 2 << 20}[c.fault]; c.verdict == Passed && got.Bytes != max(want, map[bool]uint64{true: 0, false: 64 << 20}[want > 0]) {
				t.Errorf("%d bytes were tested", got.Bytes)
			}
			noChild(t)
		})
	}
}

func TestErrorsWithoutNamesAreToldByNumber(t *testing.T) {
	if got := newProver(t, fakeCUDA(t, "-DFAULT=NODEVICE", "-DNONAMES")).Prove(t.Context(), fakeUUID); got.Verdict != Failed || got.Why != "cuInit: CUDA error 100" {
		t.Errorf("%+v", got)
	}
}

func TestALibraryThatIsNotCUDAsSaysNothingOfTheGPU(t *testing.T) {
	lacking := fakeCUDA(t, "-DcuMemsetD32_v2=somethingElse")
	for library, why := range map[string]string{
		lacking: "has no cuMemsetD32_v2", filepath.Join(t.TempDir(), "libcuda.so.1"): "cannot be opened",
	} {
		if got := newProver(t, library).Prove(t.Context(), fakeUUID); got.Verdict != Unable || !strings.Contains(got.Why, why) {
			t.Errorf("%+v, want %q", got, why)
		}
	}
	noChild(t)
	if got := NewProver(nil, "").Prove(t.Context(), fakeUUID); got.Verdict != Unable {
		t.Errorf("without a command: %+v", got)
	}
}

func TestADriverThatHangsIsKilledWithAllThatItStarted(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	p := newProver(t, fakeCUDA(t, "-DFAULT=HANG", `-DPIDFILE="`+pidFile+`"`))
	p.patient = 6 * time.Second
	began := time.Now()
	got := p.Prove(t.Context(), fakeUUID)
	if got.Verdict != Failed || !strings.Contains(got.Why, "hung for 6s at cuInit") || time.Since(began) > 20*time.Second || got.TookMs < 6000 {
		t.Errorf("after %s: %+v", time.Since(began), got)
	}
	noChild(t)
	isGone(t, pidFile)

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan Proof, 1)
	p.patient = time.Minute
	_ = os.Remove(pidFile)
	go func() { done <- p.Prove(ctx, fakeUUID) }()
	await(t, "it hangs", func() bool { b, err := os.ReadFile(pidFile); return err == nil && strings.HasSuffix(string(b), "\n") })
	cancel()
	if got := <-done; got.Verdict != Unable {
		t.Errorf("a test that its owner ends says of the GPU: %+v", got)
	}
	noChild(t)
	isGone(t, pidFile)
}

// isGone waits for the end of the process whose number a file has.
func isGone(t *testing.T, pidFile string) {
	t.Helper()
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	await(t, "what the driver started is gone", func() bool {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ") // a container may have nobody who reaps orphans
	})
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not in time: %s", what)
		}
	}
}

func TestAChildThatCannotStartOrSaysNothingIsAFailedTest(t *testing.T) {
	for command, why := range map[string]string{"/nowhere/gridbeam": "could not be started", "/bin/true": "ended at its start without a verdict"} {
		if got := NewProver([]string{command}, "").Prove(t.Context(), fakeUUID); got.Verdict != Failed || !strings.Contains(got.Why, why) {
			t.Errorf("%s: %+v", command, got)
		}
	}
	p := NewProver([]string{"/bin/sh", "-c", `echo passed 4096; yes | head -c 1000000; echo "failed too late"; exit 0`}, "")
	if got := p.Prove(t.Context(), fakeUUID); got.Verdict != Passed || got.Bytes != 4096 {
		t.Errorf("one that says too much: %+v", got)
	}
	p.stuck[fakeUUID] = true
	if got := p.Prove(t.Context(), fakeUUID); got.Verdict != Failed || !strings.Contains(got.Why, "cannot be killed") {
		t.Errorf("while an earlier child hangs: %+v", got)
	}
	if err := RunProof([]string{"one"}); err == nil {
		t.Error("the child takes any arguments")
	}
	noChild(t)
}

func FuzzProof(f *testing.F) {
	for _, seed := range []string{
		"at cuInit\npassed 67108864\n", "at cuInit\nfailed cuInit: CUDA_ERROR_NO_DEVICE (100)\n", "unable no library\n", "passed 0\n", "passed 99999999999\n", "failed \n", "at \xff\n",
		"passed 1\nfailed x", "", strings.Repeat("x", 70000),
	} {
		f.Add([]byte(seed), "crashed (killed)", "noise")
	}
	f.Fuzz(func(t *testing.T, said []byte, how, noise string) {
		for _, p := range []Proof{judgeProof(said, "", noise), judgeProof(said, how, noise)} {
			switch {
			case p.Verdict == Passed && (p.Bytes == 0 || p.Bytes > proofBytes || p.Why != ""):
				t.Errorf("%+v", p)
			case p.Verdict != Passed && (p.Why == "" || len(p.Why) > 512):
				t.Errorf("%+v", p)
			}
		}
		if p := judgeProof(said, "crashed", noise); p.Verdict != Failed {
			t.Errorf("a crash is %+v", p)
		}
	})
}
