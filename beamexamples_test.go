package gridbeam_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/gridbeam/gridbeam/internal/beamclient"
)

// TestExamplesOfBeamRunOnNodes runs the functions of examples/beam as they stand there, as Beam's SDK would call them.
func TestExamplesOfBeamRunOnNodes(t *testing.T) {
	g := newBeamGrid(t, 2)
	c := g.client()
	files := map[string]string{}
	for _, name := range []string{"hello.py", "map_digits.py"} {
		b, err := os.ReadFile(filepath.Join("examples", "beam", name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(b)
	}
	square, _, err := c.Prepare(t.Context(), beamclient.Function{Files: files, Handler: "hello:square"})
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Invoke(t.Context(), square, beamclient.PickleCall(12), false, nil)
	if n, perr := beamclient.PickledInt(r.Result); err != nil || perr != nil || n != 144 || !strings.HasPrefix(r.Output, "squaring 12 on ") {
		t.Errorf("square(12): %+v, %v, %v", r, err, perr)
	}

	g.gridbeam("volume", "import", "digits", filepath.Join("examples", "sweep", "data"))
	classify, _, err := c.Prepare(t.Context(), beamclient.Function{Files: files, Handler: "map_digits:classify", Volumes: map[string]string{"./digits": "digits"}})
	if err != nil {
		t.Fatal(err)
	}
	const shards = 16
	var wg sync.WaitGroup
	right, total := make([]int, shards), make([]int, shards)
	for i := range shards {
		wg.Go(func() {
			r, err := c.Invoke(t.Context(), classify, beamclient.PickleCall(i), false, nil)
			if err != nil || r.Exit != 0 {
				t.Errorf("shard %d: exit %d, %v\n%s", i, r.Exit, err, r.Output)
				return
			}
			var shard int
			if _, err := fmt.Sscanf(r.Output, "shard %d: %d of %d", &shard, &right[i], &total[i]); err != nil || shard != i {
				t.Errorf("shard %d printed %q", i, r.Output)
			}
		})
	}
	wg.Wait()
	correct, rows := 0, 0
	for i := range shards {
		correct, rows = correct+right[i], rows+total[i]
	}
	if rows != 360 || correct != 354 {
		t.Errorf("%d of %d rows right, want 354 of 360", correct, rows)
	}
}
