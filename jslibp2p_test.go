package gridbeam_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// TestU3_AnIndependentClientReadsAndWritesTheDirectory has a js-libp2p client, whose half of the wire is written from the
// documents (test/interop/js), join six Go servers over TCP: it reads, verifies and decodes a record, finds providers,
// hears a heartbeat, stores a record and a heartbeat that Go accepts, and is refused thirteen wrong ones.
func TestU3_AnIndependentClientReadsAndWritesTheDirectory(t *testing.T) {
	dir := npmInstall(t, "js", "acceptance.mjs", "polyfill.mjs", "wire.mjs")
	peers := make([]*directoryPeer, 6)
	var addrs []string
	for i := range peers {
		peers[i] = newDirectoryPeer(t, i == 0)
		if i > 0 {
			connectDirectories(t, peers[i], peers[0])
		}
		addrs = append(addrs, fmt.Sprintf("%s/p2p/%s", peers[i].host.Host().Addrs()[0], peers[i].id))
	}
	subject := peers[3]
	const model = "nvidia-h100-80gb-sxm"
	record := subject.advertise(t, &pb.GpuGroup{Vendor: "nvidia", Model: model, Count: 8, VramBytes: new(uint64(85_520_809_984))})
	others := []string{subject.id.String()}
	for _, p := range peers[1:3] {
		p.advertise(t)
		others = append(others, p.id.String())
	}
	beats, stop := context.WithCancel(t.Context())
	beating := make(chan struct{})
	go func() {
		defer close(beating)
		subject.beat(beats, t, record, &pb.GroupLoad{Index: 0, Free: 5})
	}()
	defer func() { stop(); <-beating }()

	about, err := json.Marshal(map[string]any{
		"peer": subject.id.String(), "gpu": model, "count": 8, "free": 5, "cores": 16, "seq": strconv.FormatUint(subject.seq, 10), "providers": others,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", "acceptance.mjs")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "SERVERS="+strings.Join(addrs, ","), "SUBJECT="+string(about))
	var complaints strings.Builder
	cmd.Stderr = &complaints
	answers, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		line := lines.Text()
		said = append(said, line)
		if what, id, ok := strings.Cut(line, " "); ok && slices.Contains([]string{"stored", "beats", "unchanged"}, what) {
			if _, err := fmt.Fprintln(answers, peers[0].sees(t, what, id)); err != nil {
				t.Errorf("answering %q: %v", line, err)
			}
		}
	}
	if err := cmd.Wait(); err != nil || len(said) == 0 || said[len(said)-1] != "done" {
		t.Fatalf("%v; it said %q and complained:\n%s", err, said, complaints.String())
	}
	refused := 0
	for _, line := range said {
		if strings.HasPrefix(line, "refused: ") {
			refused++
		}
	}
	if refused != 13 {
		t.Errorf("%d wrong records were refused, want 13: %q", refused, said)
	}
}
