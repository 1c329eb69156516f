package cluster

import (
	"bufio"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gridbeam/gridbeam/protocol"
)

var update = flag.Bool("update", false, "rewrite the expected part of the rank tables")

// TestGoldenRankTables reads testdata/ranks/*.txt: a comment, "job {…}", candidates as "node {…}" on top of
// a common "base {…}", then after --- what Select says. Run with -update to rewrite the last part, and read
// the difference.
func TestGoldenRankTables(t *testing.T) {
	files, err := filepath.Glob("testdata/ranks/*.txt")
	if err != nil || len(files) < 6 {
		t.Fatalf("%d rank tables, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			given, want, _ := strings.Cut(string(raw), "---\n")
			var job Job
			var base string
			var cs []Candidate
			for sc := bufio.NewScanner(strings.NewReader(given)); sc.Scan(); {
				word, rest, _ := strings.Cut(sc.Text(), " ")
				switch word {
				case "job":
					err = json.Unmarshal([]byte(rest), &job)
				case "base":
					base = rest
				case "node":
					c := good("")
					c.Group = ""
					if base != "" {
						err = json.Unmarshal([]byte(base), &c)
					}
					name, fields, _ := strings.Cut(rest, " ")
					c.Peer = "" // names are short texts, which no JSON form of a peer ID is
					if err == nil && fields != "" {
						err = json.Unmarshal([]byte(fields), &c)
					}
					c.Peer = peerNamed(name)
					cs = append(cs, c)
				}
				if err != nil {
					t.Fatalf("%s: %v", sc.Text(), err)
				}
			}
			_, x, err := Select(job, cs, noon, 1)
			got := named(x.String(), cs)
			if err != nil {
				got += "error: " + named(err.Error(), cs) + "\n"
			}
			if *update {
				if err := os.WriteFile(file, []byte(given+"---\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != want {
				t.Errorf("got:\n%swant:\n%s", got, want)
			}
		})
	}
}

func peerNamed(name string) protocol.PeerID { return protocol.PeerID(name) }

// named puts the short names back where a peer ID's text form stands.
func named(s string, cs []Candidate) string {
	for _, c := range cs {
		s = strings.ReplaceAll(s, " "+c.Peer.String()+":", " "+string(c.Peer)+":")
	}
	return s
}
