package gridbeam_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/internal/beamclient"
)

// The rows of RNP-005 that Beam's own clients see. Everything is real: processes, sockets, sandboxes, Python.

const squareApp = `
import os, time

def square(n):
    print("squaring", n)
    return n * n

def slow(n):
    print("begins", flush=True)
    time.sleep(n)
    print("ends", flush=True)
    return n

def fails(n):
    raise ValueError("no square of %d" % n)

def pid(n):
    return os.getpid()
`

// "Local Python development, remote execution": the calls that Beam's SDK makes, in its order.
func TestB1_AFunctionOfBeamRunsOnNodesAndOutlivesOne(t *testing.T) {
	g := newBeamGrid(t, 2)
	c := g.client()
	ctx := t.Context()
	stub, warning, err := c.Prepare(ctx, beamclient.Function{Files: map[string]string{"app.py": squareApp}, Handler: "app:square", Retries: 3})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(warning, "no node") {
		t.Errorf("two nodes are there, and the user is told: %s", warning)
	}
	r, err := c.Invoke(ctx, stub, beamclient.PickleCall(7), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := beamclient.PickledInt(r.Result); r.Exit != 0 || n != 49 || err != nil || r.Output != "squaring 7\n" || r.Frames != 0 || r.Task == "" {
		t.Fatalf("square(7): %+v, %v", r, err)
	}
	began := time.Now()
	if _, err := c.Invoke(ctx, stub, beamclient.PickleCall(8), false, nil); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("a warm call took %s", took)
	}

	var wg sync.WaitGroup
	results := make([]beamclient.Result, 100)
	errs := make([]error, 100)
	for i := range results {
		wg.Go(func() { results[i], errs[i] = c.Invoke(ctx, stub, beamclient.PickleCall(i), false, nil) })
	}
	g.kill(g.nodes[0]) // in the middle
	wg.Wait()
	for i, r := range results {
		n, err := beamclient.PickledInt(r.Result)
		if errs[i] != nil || err != nil || n != i*i || r.Exit != 0 || r.Frames != 0 {
			t.Errorf("square(%d) is %d, exit %d, %v, %v", i, n, r.Exit, errs[i], err)
		}
	}

	list, err := c.Call(ctx, "/gateway.GatewayService/ListTasks", beamclient.Message{}.Num(2, 1000))
	if err != nil || list.Num(4) != 102 {
		t.Errorf("the bridge knows of %d calls, %v; 102 were made", list.Num(4), err)
	}
	jobs := g.gridbeam("job", "list")
	id := ""
	for _, line := range strings.Split(jobs, "\n")[1:] {
		if f := strings.Fields(line); len(f) > 0 {
			id = f[0]
		}
	}
	if why := g.gridbeam("job", "explain", id); !strings.Contains(why, "2 of 2 match") || !strings.Contains(why, "RELIABILITY") {
		t.Errorf("why these nodes:\n%s", why)
	}
}

// What goes wrong is told in band, and to the one call that it happened to.
func TestB1_AFailureIsToldToItsCallAlone(t *testing.T) {
	g := newBeamGrid(t, 1)
	c := g.client()
	ctx := t.Context()
	app := map[string]string{"app.py": squareApp}
	fails, _, err := c.Prepare(ctx, beamclient.Function{Files: app, Handler: "app:fails"})
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Invoke(ctx, fails, beamclient.PickleCall(3), false, nil)
	if err != nil || r.Exit != 1 || !strings.Contains(r.Output, "ValueError: no square of 3") || !strings.Contains(r.Output, "app.py") || len(r.Result) > 0 {
		t.Errorf("an exception: %+v, %v", r, err)
	}
	missing, _, err := c.Prepare(ctx, beamclient.Function{Files: app, Handler: "nothing:here"})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := c.Invoke(ctx, missing, beamclient.PickleCall(3), false, nil); err != nil || r.Exit != 2 || !strings.Contains(r.Output, "nothing") {
		t.Errorf("a module that is not there: %+v, %v", r, err)
	}
	slow, _, err := c.Prepare(ctx, beamclient.Function{Files: app, Handler: "app:slow", Timeout: 2})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if r, err := c.Invoke(ctx, slow, beamclient.PickleCall(60), false, nil); err != nil || r.Exit != 4 || time.Since(began) > 20*time.Second {
		t.Errorf("a call over its timeout of 2 s: %+v, %v after %s", r, err, time.Since(began))
	}
	if _, _, err := c.Prepare(ctx, beamclient.Function{Files: app, Handler: "app:square", Env: []string{"GRIDBEAM_NONSENSE=1"}}); err == nil || !strings.Contains(err.Error(), "GRIDBEAM_NONSENSE") {
		t.Errorf("an unknown wish: %v", err)
	}
	bad := g.dial("gb_no")
	if _, _, err := bad.Prepare(ctx, beamclient.Function{Files: app, Handler: "app:square"}); err == nil || !strings.Contains(err.Error(), "Unauthenticated") {
		t.Errorf("a bad token: %v", err)
	}
}

// Output is there while the function runs, and a caller who goes away ends it.
func TestB1_OutputComesAtOnceAndAnAbandonedCallEnds(t *testing.T) {
	g := newBeamGrid(t, 1)
	c := g.client()
	stub, _, err := c.Prepare(t.Context(), beamclient.Function{Files: map[string]string{"app.py": squareApp}, Handler: "app:slow"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	heard := make(chan time.Time, 1)
	ended := make(chan error, 1)
	go func() {
		_, err := c.Invoke(ctx, stub, beamclient.PickleCall(300), false, func(text string) {
			if strings.Contains(text, "begins") {
				heard <- time.Now()
			}
		})
		ended <- err
	}()
	select {
	case <-heard:
	case err := <-ended:
		t.Fatalf("the call ended: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("nothing was printed in 30 s")
	}
	cancel()
	<-ended
	gone := time.Now()
	for deadline := gone.Add(15 * time.Second); ; {
		tasks, err := c.Call(t.Context(), "/gateway.GatewayService/ListTasks", beamclient.Message{}.Num(2, 10))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(tasks.Raw(3)), "CANCELLED") && !strings.Contains(g.gridbeam("node", "status", "--data", filepath.Join(g.dir, "node0")), "running") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("15 s after its caller went away: %s", g.gridbeam("node", "status", "--data", filepath.Join(g.dir, "node0")))
		}
		<-time.After(100 * time.Millisecond)
	}
	t.Logf("over on the node %s after the caller went away", time.Since(gone).Round(10*time.Millisecond))
}

// A volume that the function names is there before its first line, and what it writes is there when it returns.
func TestB1_VolumesAreThereAndKeepWhatIsWritten(t *testing.T) {
	g := newBeamGrid(t, 1)
	c := g.client()
	data := filepath.Join(g.dir, "numbers")
	if err := os.MkdirAll(data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(data, "n.txt"), []byte("41"), 0o644); err != nil {
		t.Fatal(err)
	}
	g.gridbeam("volume", "import", "numbers", data)
	app := `
n = int(open("./numbers/n.txt").read())

def add(x):
    with open("/volumes/out/%d.txt" % x, "w") as f:
        f.write(str(n + x))
    return n + x

def read(x):
    return int(open("./out/%d.txt" % x).read())
`
	f := beamclient.Function{Files: map[string]string{"app.py": app}, Handler: "app:add", Volumes: map[string]string{"./numbers": "numbers", "./out": "out"}}
	add, _, err := c.Prepare(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Invoke(t.Context(), add, beamclient.PickleCall(1), false, nil)
	if n, perr := beamclient.PickledInt(r.Result); err != nil || perr != nil || n != 42 {
		t.Fatalf("add(1): %+v, %v, %v", r, err, perr)
	}
	f.Handler = "app:read"
	read, _, err := c.Prepare(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	r, err = c.Invoke(t.Context(), read, beamclient.PickleCall(1), false, nil)
	if n, perr := beamclient.PickledInt(r.Result); err != nil || perr != nil || n != 42 {
		t.Errorf("what add wrote is read as %+v, %v, %v", r, err, perr)
	}
}

// What a call has written is there for every call that is made after it has returned, on whatever node that runs.
func TestB1_ACallSeesWhatOthersWroteBefore(t *testing.T) {
	g := newBeamGrid(t, 2)
	c := g.client()
	app := `
import os

def bump(n):
    path = "./counter/n.txt"
    old = int(open(path).read()) if os.path.exists(path) else 0
    with open(path, "w") as f:
        f.write(str(old + 1))
    with open("./counter/%d" % n, "w") as f:
        f.write("x")
    return old + 1 + 1000 * len(os.listdir("./counter"))
`
	stub, _, err := c.Prepare(t.Context(), beamclient.Function{Files: map[string]string{"app.py": app}, Handler: "app:bump", Volumes: map[string]string{"./counter": "counter"}})
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 8; n++ {
		if n%2 == 0 { // the other node's turn
			g.gridbeam("node", "resume", "--data", filepath.Join(g.dir, fmt.Sprint("node", n/2%2)))
			g.gridbeam("node", "pause", "--data", filepath.Join(g.dir, fmt.Sprint("node", (n/2+1)%2)))
		}
		r, err := c.Invoke(t.Context(), stub, beamclient.PickleCall(n), false, nil)
		got, perr := beamclient.PickledInt(r.Result)
		if want := n + 1000*(n+1); err != nil || perr != nil || got != want {
			t.Fatalf("call %d returned %d, want %d: %+v, %v, %v", n, got, want, r, err, perr)
		}
	}
}

// The daemon of a node is killed while a function runs: it finishes once, and its caller gets the answer.
func TestB1_ACallOutlivesItsNodesDaemon(t *testing.T) {
	g := newBeamGrid(t, 1)
	c := g.client()
	app := `
import time

def once(n):
    print("begins", flush=True)
    time.sleep(n)
    return n
`
	stub, _, err := c.Prepare(t.Context(), beamclient.Function{Files: map[string]string{"app.py": app}, Handler: "app:once", Retries: 3})
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan struct{}, 8)
	type answer struct {
		r   beamclient.Result
		err error
	}
	ended := make(chan answer, 1)
	go func() {
		r, err := c.Invoke(t.Context(), stub, beamclient.PickleCall(12), false, func(text string) {
			if strings.Contains(text, "begins") {
				heard <- struct{}{}
			}
		})
		ended <- answer{r, err}
	}()
	select {
	case <-heard:
	case a := <-ended:
		t.Fatalf("%+v", a)
	}
	g.kill(g.nodes[0])
	g.nodes[0] = g.startNode("node0")
	a := <-ended
	n, err := beamclient.PickledInt(a.r.Result)
	if a.err != nil || err != nil || n != 12 || a.r.Exit != 0 {
		t.Fatalf("%+v, %v", a, err)
	}
	status := g.gridbeam("job", "list")
	if extra := len(heard); extra > 0 {
		t.Errorf("it began %d times more; jobs:\n%s", extra, status)
	}
}

// "From local development to remote execution in minutes": with a stopwatch, from nothing.
func TestB9_TheFirstResultIsThereWithinMinutes(t *testing.T) {
	began := time.Now()
	g := newBeamGrid(t, 2)
	c := g.client()
	stub, _, err := c.Prepare(t.Context(), beamclient.Function{Files: map[string]string{"app.py": squareApp}, Handler: "app:square"})
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Invoke(t.Context(), stub, beamclient.PickleCall(9), false, nil)
	if n, perr := beamclient.PickledInt(r.Result); err != nil || perr != nil || n != 81 {
		t.Fatalf("square(9): %+v, %v, %v", r, err, perr)
	}
	if took := time.Since(began); took > 5*time.Minute {
		t.Errorf("a bridge, two nodes and the first result took %s", took)
	} else {
		t.Logf("a bridge, two nodes and the first result took %s", took.Round(time.Millisecond))
	}
}

// "Select specific GPU types" and "node reputation thresholds", as Beam's users say it.
func TestJ1_BeamsWordsForHardwareAreHeld(t *testing.T) {
	g := newBeamGrid(t, 1)
	c := g.client()
	app := map[string]string{"app.py": squareApp}
	_, warning, err := c.Prepare(t.Context(), beamclient.Function{Files: app, Handler: "app:square", GPU: "H100", GPUs: 1})
	if err != nil || !strings.Contains(warning, "H100") {
		t.Errorf("no node has an H100, and the user is told %q, %v", warning, err)
	}
	if _, _, err := c.Prepare(t.Context(), beamclient.Function{Files: app, Handler: "app:square", GPU: "XYZ9", GPUs: 1}); err == nil || !strings.Contains(err.Error(), "XYZ9") {
		t.Errorf("a GPU that does not exist: %v", err)
	}
	_, warning, err = c.Prepare(t.Context(), beamclient.Function{Files: app, Handler: "app:square", Env: []string{"GRIDBEAM_MIN_REPUTATION=0.99"}})
	if err != nil || !strings.Contains(warning, "min_reputation") {
		t.Errorf("no node has earned 0.99, and the user is told %q, %v", warning, err)
	}
	stub, _, err := c.Prepare(t.Context(), beamclient.Function{Files: app, Handler: "app:square", GPU: "H100", GPUs: 1, Env: []string{fmt.Sprintf("GRIDBEAM_%s=%s", "DEADLINE", "5s")}})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := c.Invoke(t.Context(), stub, beamclient.PickleCall(1), false, nil); err != nil || r.Exit == 0 {
		t.Errorf("a call that no node may take: %+v, %v", r, err)
	}
}

// Large arguments and results, and many calls at once on one connection.
func TestB1_LargeAndManyCalls(t *testing.T) {
	g := newBeamGrid(t, 2)
	c := g.client()
	app := `
def echo(x):
    return x

def double(n):
    return 2 * n

def huge(n):
    return "x" * (16 << 20)

def evil(n):
    import os
    class Trap:
        def __reduce__(self):
            return (os.system, ("touch /tmp/gridbeam-was-here",))
    return Trap()
`
	files := map[string]string{"app.py": app}
	echo, _, err := c.Prepare(t.Context(), beamclient.Function{Files: files, Handler: "app:echo"})
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("0123456789abcdef", 5<<20/16)
	r, err := c.Invoke(t.Context(), echo, beamclient.PickleText(text), false, nil)
	if err != nil || r.Exit != 0 || !strings.Contains(string(r.Result), text) {
		t.Errorf("5 MiB there and back: exit %d, %d bytes, %v\n%.200s", r.Exit, len(r.Result), err, r.Output)
	}
	for handler, want := range map[string]string{"app:huge": "volume", "app:evil": "system"} {
		stub, _, err := c.Prepare(t.Context(), beamclient.Function{Files: files, Handler: handler})
		if err != nil {
			t.Fatal(err)
		}
		if r, err := c.Invoke(t.Context(), stub, beamclient.PickleCall(1), false, nil); err != nil || r.Exit != 1 || len(r.Result) > 0 || !strings.Contains(r.Output, want) {
			t.Errorf("%s: exit %d, %d bytes of result, %v\n%.500s", handler, r.Exit, len(r.Result), err, r.Output)
		}
	}
	double, _, err := c.Prepare(t.Context(), beamclient.Function{Files: files, Handler: "app:double", Retries: 3})
	if err != nil {
		t.Fatal(err)
	}
	const calls = 600
	var wg sync.WaitGroup
	began := time.Now()
	for i := range calls {
		wg.Go(func() {
			r, err := c.Invoke(t.Context(), double, beamclient.PickleCall(i), false, nil)
			if n, perr := beamclient.PickledInt(r.Result); err != nil || perr != nil || n != 2*i {
				t.Errorf("double(%d): %+v, %v, %v", i, r, err, perr)
			}
		})
	}
	wg.Wait()
	t.Logf("%d calls in %s", calls, time.Since(began).Round(time.Millisecond))
}

// The bridge is killed: a headless call goes on, and its result is there afterwards.
func TestB1_AHeadlessCallOutlivesTheBridge(t *testing.T) {
	g := newBeamGrid(t, 1)
	c := g.client()
	stub, _, err := c.Prepare(t.Context(), beamclient.Function{Files: map[string]string{"app.py": squareApp}, Handler: "app:slow", Retries: 3})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	heard := make(chan struct{}, 1)
	ended := make(chan error, 1)
	go func() {
		_, err := c.Invoke(ctx, stub, beamclient.PickleCall(15), true, func(text string) {
			if strings.Contains(text, "begins") {
				heard <- struct{}{}
			}
		})
		ended <- err
	}()
	select {
	case <-heard:
	case err := <-ended:
		t.Fatal(err)
	}
	cancel() // the caller goes
	<-ended
	g.kill(g.bridge)
	g.startBridge()
	c = g.client()
	for end := time.Now().Add(2 * time.Minute); ; {
		tasks, err := c.Call(t.Context(), "/gateway.GatewayService/ListTasks", beamclient.Message{}.Num(2, 10))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(tasks.Raw(3)), "COMPLETE") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("two minutes after the bridge came back: %q", tasks.Raw(3))
		}
		<-time.After(200 * time.Millisecond)
	}
}
