package protocol

import (
	"fmt"
	"math"
	"strings"
	"testing"
)

// reasonTable is execution.md 7 and scheduling.md 4, written out: number name blame retry status.
const reasonTable = `
1 done nobody never done
10 exit_nonzero job elsewhere failed
11 signal job elsewhere failed
12 oom job never failed
13 timeout job never failed
14 disk_full job never failed
15 output_too_large job never failed
16 bad_module job never failed
17 bad_image job never failed
18 bad_command job never failed
19 volume_denied job never failed
20 syscall_denied job never failed
21 gpu_application job elsewhere failed
22 output_invalid job never failed
23 budget_exhausted job never failed
40 backend_failed node elsewhere failed
41 start_failed node elsewhere failed
42 node_disk_full node elsewhere failed
43 gpu_faulted node elsewhere failed
44 gpu_foreign node elsewhere failed
45 heartbeat_lost node elsewhere lost
46 restart_lost node elsewhere lost
47 host_pressure node elsewhere failed
48 result_wrong node elsewhere failed
49 hardware_below_claim node elsewhere failed
50 stuck node elsewhere failed
51 operator_killed node elsewhere failed
52 publish_failed node elsewhere failed
60 unreachable network elsewhere failed
61 data_unavailable network elsewhere failed
62 data_slow network elsewhere failed
63 cluster_partition network elsewhere failed
80 cancelled nobody never cancelled
81 preempted nobody elsewhere cancelled
82 drained nobody elsewhere cancelled
83 superseded nobody never cancelled
84 fenced nobody never cancelled
85 lease_expired nobody elsewhere lost
86 bridge_error nobody later failed
87 revoked nobody never cancelled
88 deadline nobody never failed
89 refused_policy nobody elsewhere cancelled
90 busy nobody later cancelled
`

func TestReasonsAreThoseOfTheDesign(t *testing.T) {
	var b strings.Builder
	b.WriteByte('\n')
	for _, r := range Reasons() {
		fmt.Fprintln(&b, uint32(r), r, r.Blame(), r.Retry(), r.Status())
	}
	if got := b.String(); got != reasonTable {
		t.Errorf("reasons are%swant%s", got, reasonTable)
	}
}

func TestEveryNumberHasABlameARetryAStatusAndAText(t *testing.T) {
	texts := map[string]Reason{}
	for n := range uint32(2000) {
		r := Reason(n)
		if r.Text() == "" || r.String() == "" || r.Status() == "" {
			t.Errorf("%d: text %q, name %q, status %q", n, r.Text(), r.String(), r.Status())
		}
		if r.Known() != r { // a newer peer's
			if r.Known() != ReasonBridgeError || r.Blame() != BlameNobody || r.Retry() != RetryLater || r.Status() != StatusFailed {
				t.Errorf("%d, which is not known: blame %s, retry %s, status %s; want those of 86", n, r.Blame(), r.Retry(), r.Status())
			}
			if n != 0 && !strings.Contains(r.String(), fmt.Sprint(n)) || !strings.Contains(r.Text(), fmt.Sprint(n)) {
				t.Errorf("%d is shown as %q, %q; want it as given", n, r.String(), r.Text())
			}
			continue
		}
		if other, twice := texts[r.Text()]; twice {
			t.Errorf("%s and %s have the same text", r, other)
		}
		texts[r.Text()] = r
	}
	if r := Reason(math.MaxUint32); r.Known() != ReasonBridgeError || r.String() != "reason_4294967295" || ReasonNone.String() != "none" {
		t.Errorf("%s, %s", r, ReasonNone)
	}
	for n := range 256 { // the words of numbers that nobody gave
		if Blame(n).String() == "" || Retry(n).String() == "" || LeaseState(n).String() == "" || UsageState(n).String() == "" {
			t.Errorf("%d has no word", n)
		}
	}
}
