package cluster

import (
	"slices"
	"testing"

	"github.com/gridbeam/gridbeam/protocol"
)

func TestWhatFollowsFromAReason(t *testing.T) {
	never, all, begun := []Reason{}, []Reason{}, []Reason{}
	for _, r := range append(protocol.Reasons(), protocol.ReasonNone, 24, 39, 1000) {
		if retryNever(r) {
			never = append(never, r)
		}
		if fatal(r) {
			all = append(all, r)
		}
		if notBegun(r) {
			begun = append(begun, r)
		}
		if blamesJob(r) != (r >= 10 && r <= 23) {
			t.Errorf("%d blames the job: %v", r, blamesJob(r))
		}
	}
	for _, c := range []struct {
		what      string
		got, want []Reason
	}{
		{"end alike on every node", never, []Reason{12, 13, 14, 15, 16, 17, 18, 19, 20, 22, 23}},
		{"end every chunk alike", all, []Reason{16, 17, 18, 19, 23}},
		{"never began", begun, []Reason{89, 90}},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: %d, want %d", c.what, c.got, c.want)
		}
	}
}
