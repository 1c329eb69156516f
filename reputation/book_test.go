package reputation

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

var t0 = time.Date(2026, 1, 4, 0, 0, 0, 0, time.UTC)

func newBook(t testing.TB) *Book {
	t.Helper()
	b, err := NewBook(DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func observe(t testing.TB, b *Book, o Observation) Transition {
	t.Helper()
	tr, err := b.Observe(o)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func check(kind Check, passed bool, at time.Time) Observation {
	return FromCheck(Attempt{Node: "n", At: at, Ref: "lease"}, kind, passed)
}

func TestAStrangerIsANewcomer(t *testing.T) {
	s := newBook(t).Score("n", t0)
	near(t, "O", s.O, .05, 1e-12)
	near(t, "p", s.P, .0025, 1e-12)
	if s.State != StateProbation || s.Vetted() || s.Audit != 1 || s.Next != "25 checks and 72 h and correctness 0.85 to vetted" {
		t.Errorf("score %+v", s)
	}
}

// TestScoresFollowTheEvidence puts the design's evidence of trust.md 13 into a book.
func TestScoresFollowTheEvidence(t *testing.T) {
	b := newBook(t)
	for i, e := range [][2]float64{{200, 3}, {120, 0}, {300, 6}, {150, 20}} {
		observe(t, b, Observation{Node: "n", Criterion: criteria[i], Good: e[0], Bad: e[1], At: t0})
	}
	for h := range 9 { // 180 good and 9 bad answers, 20 and 1 an hour; the book takes 20
		at := t0.Add(time.Duration(h-8) * time.Hour)
		for range 20 {
			observe(t, b, FromAnswer("n", 0, at))
		}
		observe(t, b, FromAnswer("n", time.Hour, at))
	}
	s := b.Score("n", t0)
	if r := s.Criteria[4]; r.Bad != 0 || r.Good >= 180 || r.Good < 178 {
		t.Errorf("answers %+v: the 21st of an hour counted, or nothing faded", r)
	}
	near(t, "Lcomp", s.L(protocol.CriterionCompletion), .9624326873, 1e-9)
	near(t, "Lperf", s.L(protocol.CriterionPerformance), .8345967617, 1e-9)
	near(t, "p", s.P, .9624326873*.9755458505, 1e-9)
	if s.L("beauty") != 0 {
		t.Error("there is no beauty")
	}
	later := b.Score("n", t0.Add(14*day))
	near(t, "good after a half-life", later.Criteria[0].Good, 100, 1e-9)
	near(t, "correctness after a quarter of one", later.Criteria[1].Good, 120*math.Exp2(-14.0/60), 1e-9)
	if later.O >= s.O {
		t.Errorf("O %g grew to %g in silence", s.O, later.O)
	}
}

func TestOutcomesBecomeEvidence(t *testing.T) {
	for _, tt := range []struct {
		name      string
		reason    protocol.Reason
		blame     protocol.Blame
		good, bad float64
		says      bool
	}{
		{"done", protocol.ReasonDone, protocol.BlameNobody, 2, 0, true},
		{"done whoever is blamed", protocol.ReasonDone, protocol.BlameNode, 2, 0, true},
		{"the node", protocol.ReasonHeartbeatLost, protocol.BlameNode, 0, 2, true},
		{"exit code that another group did not have", protocol.ReasonExitNonzero, protocol.BlameNode, 0, 2, true},
		{"the job", protocol.ReasonExitNonzero, protocol.BlameJob, 0, 0, false},
		{"the network", protocol.ReasonUnreachable, protocol.BlameNetwork, 0, 0, false},
		{"nobody", protocol.ReasonCancelled, protocol.BlameNobody, 0, 0, false},
	} {
		o, says := FromOutcome(Attempt{Node: "n", Reason: tt.reason, Blame: tt.blame, GPUSeconds: 60, CPUSeconds: 1e6, At: t0})
		if says != tt.says || o.Good != tt.good || o.Bad != tt.bad || says && o.Criterion != protocol.CriterionCompletion {
			t.Errorf("%s: %+v, %v", tt.name, o, says)
		}
	}
	if o := FromUptime("n", 4, t0); math.Abs(o.Good-4.0/6) > 1e-12 || math.Abs(o.Bad-2.0/6) > 1e-12 {
		t.Errorf("4 sixths are %+v", o)
	}
	if o := FromUptime("n", 99, t0); o.Good != 1 || o.Bad != 0 {
		t.Errorf("99 sixths are %+v", o)
	}
	if _, says := FromPerformance(Attempt{Node: "n", At: t0}, time.Second, time.Second, 4, 3); says {
		t.Error("4 samples say something")
	}
	if o, says := FromPerformance(Attempt{Node: "n", At: t0, GPUSeconds: 60}, 4*time.Second, 3*time.Second, 5, 3); !says || o.Good != 1 || o.Bad != 1 {
		t.Errorf("3/4 of the class's speed is %+v", o)
	}
}

// TestBlameIsCorrectedByWhatHappenedAround checks the table of trust.md 9.
func TestBlameIsCorrectedByWhatHappenedAround(t *testing.T) {
	for name, tt := range map[string]struct {
		e    Ended
		want protocol.Blame
	}{
		"exit code":                         {Ended{Reason: protocol.ReasonExitNonzero}, protocol.BlameJob},
		"another group completed it":        {Ended{Reason: protocol.ReasonExitNonzero, ElsewhereDone: true}, protocol.BlameNode},
		"three groups alike":                {Ended{Reason: protocol.ReasonExitNonzero, ElsewhereDone: true, AlikeGroups: 3}, protocol.BlameJob},
		"lost":                              {Ended{Reason: protocol.ReasonHeartbeatLost}, protocol.BlameNode},
		"lost with its region":              {Ended{Reason: protocol.ReasonHeartbeatLost, AreaSilent: true}, protocol.BlameNetwork},
		"lost and came back":                {Ended{Reason: protocol.ReasonHeartbeatLost, CameBack: true, AreaSilent: true}, protocol.BlameNobody},
		"lost, the rater was away":          {Ended{Reason: protocol.ReasonHeartbeatLost, CutOff: true}, protocol.BlameNobody},
		"a full disk while the rater was":   {Ended{Reason: protocol.ReasonNodeDiskFull, CutOff: true}, protocol.BlameNode},
		"the network":                       {Ended{Reason: protocol.ReasonUnreachable, NetworkBlames: 3}, protocol.BlameNetwork},
		"the network, for this node only":   {Ended{Reason: protocol.ReasonUnreachable, NetworkBlames: 4}, protocol.BlameNode},
		"the bridge":                        {Ended{Reason: protocol.ReasonBridgeError}, protocol.BlameNobody},
		"a reason that is not known":        {Ended{Reason: 4711}, protocol.BlameNobody},
		"a drain that another completed":    {Ended{Reason: protocol.ReasonDrained, ElsewhereDone: true}, protocol.BlameNobody},
		"a wrong result stays the node's":   {Ended{Reason: protocol.ReasonResultWrong, AreaSilent: true, CameBack: true}, protocol.BlameNode},
		"the lease expired, as nobody said": {Ended{Reason: protocol.ReasonLeaseExpired}, protocol.BlameNobody},
	} {
		if got := Blamed(tt.e); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

func TestNewcomersAreVettedByChecksAndTime(t *testing.T) {
	b := newBook(t)
	b.Meet("n", "operator", false, t0)
	for i := range 24 {
		observe(t, b, check(CheckExact, true, t0.Add(time.Duration(i)*time.Hour)))
	}
	at := t0.Add(71 * time.Hour)
	if s := b.Score("n", at); s.Next != "1 checks and 1 h to vetted" || s.InARow != 24 || s.Checks != 24 || s.Group != "operator" {
		t.Errorf("score %+v", s)
	}
	if tr := observe(t, b, check(CheckExact, true, at)); tr.Changed() {
		t.Errorf("vetted after 71 h: %+v", tr)
	}
	if s := b.Score("n", at.Add(time.Hour)); s.State != StateVetted || !s.Vetted() {
		t.Errorf("after 72 h it is %s", s.State)
	}
	if tr := b.Advance("n", at.Add(time.Hour)); tr != (Transition{StateProbation, StateVetted}) {
		t.Errorf("transition %+v", tr)
	}
	if s := b.Score("n", at.Add(2*time.Hour)); s.Audit != .05 || s.Next != "vetted; every 20th result is checked" {
		t.Errorf("audit %g, %q", s.Audit, s.Next)
	}
	// Checks that failed do not vet.
	for i := range 60 {
		observe(t, b, Observation{Node: "m", Criterion: protocol.CriterionCorrectness, Check: CheckGraded, Good: float64(i % 2), Bad: float64(1 - i%2), At: t0})
	}
	if s := b.Score("m", t0.Add(1000*time.Hour)); s.State == StateVetted {
		t.Errorf("half of all checks vet: %+v", s)
	}
}

func TestAnchorsCountAsVettedAndAreNotAudited(t *testing.T) {
	b := newBook(t)
	b.Meet("n", "own", true, t0)
	s := b.Score("n", t0)
	if !s.Vetted() || s.Audit != 0 || s.State != StateProbation || !strings.Contains(s.Next, "operator") {
		t.Errorf("score %+v", s)
	}
	near(t, "O of an anchor", s.O, .05, 1e-12)
	b.Convict("n", protocol.ReasonResultWrong, "proof", t0)
	if s = b.Score("n", t0); s.Vetted() || s.O != 0 {
		t.Errorf("a convicted anchor: %+v", s)
	}
}

func TestConvictionsSuspendOnceAndDisqualifyTwice(t *testing.T) {
	b := newBook(t)
	if tr := observe(t, b, check(CheckExact, false, t0)); tr != (Transition{StateProbation, StateSuspended}) {
		t.Fatalf("first conviction: %+v", tr)
	}
	if tr := b.Contain("n", t0); tr.To != StateContained {
		t.Fatalf("contained: %+v", tr)
	}
	s := b.Score("n", t0)
	if s.O != 0 || s.Next != "20 passed checks in a row to probation" || len(s.Incidents) != 1 || s.Incidents[0].Without <= s.O {
		t.Errorf("score %+v", s)
	}
	for i := range 20 {
		tr := observe(t, b, check(CheckExact, true, t0.Add(time.Duration(i)*time.Hour)))
		if tr.Changed() != (i == 19) {
			t.Fatalf("check %d: %+v", i+1, tr)
		}
	}
	if s := b.Score("n", t0.Add(20*time.Hour)); s.State != StateProbation || s.O == 0 {
		t.Errorf("released: %+v", s)
	}
	if tr := observe(t, b, check(CheckExact, false, t0.Add(59*day))); tr.To != StateDisqualified {
		t.Errorf("second conviction in 59 d: %+v", tr)
	}
	for _, o := range []Observation{check(CheckExact, true, t0.Add(60*day)), check(CheckGraded, true, t0.Add(60*day))} {
		for range 200 {
			if tr := observe(t, b, o); tr.To != StateDisqualified {
				t.Fatalf("a disqualified node became %s", tr.To)
			}
		}
	}
	if tr := b.Pardon("n", t0.Add(61*day)); tr.To != StateProbation {
		t.Errorf("pardon: %+v", tr)
	}
	// Far apart they are two first ones.
	observe(t, b, Observation{Node: "m", Criterion: protocol.CriterionCorrectness, Check: CheckExact, Bad: 1, At: t0})
	b.Pardon("m", t0)
	if tr := observe(t, b, Observation{Node: "m", Criterion: protocol.CriterionCorrectness, Check: CheckExact, Bad: 1, At: t0.Add(61 * day)}); tr.To != StateSuspended {
		t.Errorf("a conviction 61 d later: %+v", tr)
	}
}

func TestTheGateSuspendsAndTheTestDecides(t *testing.T) {
	b := newBook(t)
	for i := range 4 {
		if tr := observe(t, b, check(CheckGraded, false, t0)); tr.Changed() != (i == 3) {
			t.Fatalf("failure %d: %+v", i+1, tr)
		}
	}
	b.Contain("n", t0)
	if s := b.Score("n", t0); s.Next != "about 112 passed checks to probation" {
		t.Errorf("next %q", s.Next)
	}
	for i := range 112 {
		if tr := observe(t, b, check(CheckGraded, true, t0)); tr.Changed() != (i == 111) {
			t.Fatalf("pass %d: %+v", i+1, tr)
		}
	}
	if s := b.Score("n", t0); s.State != StateProbation || b.nodes["n"].Gate != NewGate() {
		t.Errorf("%s with gate %+v", s.State, b.nodes["n"].Gate)
	}
	for i := range 9 { // 4 to be suspended, 5 to be out
		tr := observe(t, b, check(CheckGraded, false, t0))
		if (tr.To == StateDisqualified) != (i == 8) {
			t.Fatalf("failure %d: %+v", i+1, tr)
		}
	}
}

func TestADisputeThatNobodyDecidesCostsTheRowOnly(t *testing.T) {
	b := newBook(t)
	for range 12 {
		observe(t, b, check(CheckExact, true, t0))
	}
	was := b.Score("n", t0)
	observe(t, b, check(CheckDisputed, false, t0))
	is := b.Score("n", t0)
	if was.InARow != 12 || is.InARow != 0 || is.O != was.O || is.State != was.State || is.Audit != 1 || is.Checks != 12 {
		t.Errorf("from %+v to %+v", was, is)
	}
}

func TestAGroupIsOutWithTwoOfItsKeys(t *testing.T) {
	b := newBook(t)
	for _, id := range []protocol.PeerID{"a", "b", "c", "d", "e"} {
		b.Meet(id, "farm", id == "e", t0)
	}
	b.Meet("x", "other", false, t0)
	b.Convict("a", protocol.ReasonResultWrong, "two receipts", t0)
	if s := b.Score("b", t0); s.State.Barred() {
		t.Fatal("one key put the group out")
	}
	b.Convict("b", protocol.ReasonResultWrong, "two receipts", t0)
	for id, want := range map[protocol.PeerID]State{"c": StateDisqualified, "d": StateDisqualified, "e": StateProbation, "x": StateProbation} {
		if s := b.Score(id, t0); s.State != want {
			t.Errorf("%s is %s, want %s", id, s.State, want)
		}
	}
	if s := b.Score("a", t0); len(s.Incidents) != 1 || s.Incidents[0].Ref != "two receipts" || s.Next != "out; only the bridge's operator can pardon it" {
		t.Errorf("score %+v", s)
	}
}

// TestAmendingLeavesNoTrace draws histories, takes one observation back, and compares with the history without it.
func TestAmendingLeavesNoTrace(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	for range 500 {
		with, without := newBook(t), newBook(t)
		with.Meet("n", "", false, t0)
		without.Meet("n", "", false, t0)
		n := 1 + rng.IntN(20)
		odd, victim := rng.IntN(n), Observation{}
		for i := range n {
			o := Observation{
				Node: "n", Criterion: criteria[rng.IntN(4)], Good: rng.Float64() * 8, Bad: rng.Float64() * 8,
				At: t0.Add(time.Duration(rng.Int64N(int64(20 * time.Hour)))), Reason: protocol.ReasonStuck, Ref: string(rune('a' + i)),
			}
			observe(t, with, o)
			if i == odd {
				victim = o
			} else {
				observe(t, without, o)
			}
		}
		if err := with.Amend(victim, t0.Add(20*time.Hour)); err != nil {
			t.Fatal(err)
		}
		a, b := with.Score("n", t0.Add(20*day)), without.Score("n", t0.Add(20*day))
		for i := range a.Criteria {
			near(t, "good", a.Criteria[i].Good, b.Criteria[i].Good, 1e-12)
			near(t, "bad", a.Criteria[i].Bad, b.Criteria[i].Bad, 1e-12)
		}
		near(t, "O", a.O, b.O, 1e-12)
		if len(a.Incidents) != len(b.Incidents) {
			t.Fatalf("%d incidents, want %d", len(a.Incidents), len(b.Incidents))
		}
	}
	b := newBook(t)
	o := check(CheckExact, true, t0)
	observe(t, b, o)
	if err := b.Amend(o, t0.Add(25*time.Hour)); !errors.Is(err, ErrTooLate) {
		t.Errorf("after 25 h: %v", err)
	}
	if err := b.Amend(o, t0); err != nil || b.Score("n", t0).Checks != 0 {
		t.Errorf("%v, %d checks", err, b.Score("n", t0).Checks)
	}
	o.Node = "stranger"
	if err := b.Amend(o, t0); !errors.Is(err, ErrObservation) {
		t.Errorf("of a stranger: %v", err)
	}
}

// TestEvidenceIsMonotoneAndWithoutOrder: the order of observations does not matter, more good evidence never lowers O, more bad evidence never raises it.
func TestEvidenceIsMonotoneAndWithoutOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	for range 300 {
		a, b := newBook(t), newBook(t)
		var all []Observation
		for range 1 + rng.IntN(20) {
			all = append(all, Observation{
				Node: "n", Criterion: criteria[rng.IntN(4)], Good: rng.Float64() * 8, Bad: rng.Float64(), At: t0.Add(time.Duration(rng.Int64N(int64(40 * day)))),
			})
		}
		for _, o := range all {
			observe(t, a, o)
		}
		for _, i := range rng.Perm(len(all)) {
			observe(t, b, all[i])
		}
		now := t0.Add(41 * day)
		was := a.Score("n", now)
		near(t, "O in another order", b.Score("n", now).O, was.O, 1e-9)
		c := criteria[rng.IntN(5)]
		observe(t, a, Observation{Node: "n", Criterion: c, Good: rng.Float64() * 8, At: now})
		better := a.Score("n", now)
		observe(t, a, Observation{Node: "n", Criterion: c, Bad: rng.Float64() * 8, At: now})
		worse := a.Score("n", now)
		if better.O < was.O-1e-12 || worse.O > better.O+1e-12 {
			t.Fatalf("O %g, with good evidence %g, with bad %g", was.O, better.O, worse.O)
		}
	}
}

func TestImpossibleObservationsAreRefused(t *testing.T) {
	b := newBook(t)
	good := Observation{Node: "n", Criterion: protocol.CriterionCompletion, Good: 1, At: t0}
	for field, spoil := range map[string]func(*Observation){
		"Node": func(o *Observation) { o.Node = "" }, "Criterion": func(o *Observation) { o.Criterion = "beauty" }, "Good": func(o *Observation) { o.Good = -1 },
		"Bad": func(o *Observation) { o.Bad = math.NaN() }, "At": func(o *Observation) { o.At = time.Time{} }, "Check": func(o *Observation) { o.Check = CheckExact },
	} {
		o := good
		spoil(&o)
		if _, err := b.Observe(o); !errors.Is(err, ErrObservation) || !strings.Contains(err.Error(), field) {
			t.Errorf("a wrong %s gives %v", field, err)
		}
	}
	if o := good; len(b.Nodes()) != 0 {
		t.Errorf("%+v left a trace", o)
	}
	for field, spoil := range map[string]func(*Config){
		"VetChecks": func(c *Config) { c.VetChecks = 0 }, "VetCorrect": func(c *Config) { c.VetCorrect = 1 }, "SpotCheck": func(c *Config) { c.SpotCheck = -1 },
		"ReleaseChecks": func(c *Config) { c.ReleaseChecks = 0 }, "AmendWithin": func(c *Config) { c.AmendWithin = -1 },
	} {
		cfg := DefaultConfig()
		spoil(&cfg)
		if _, err := NewBook(cfg); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), field) {
			t.Errorf("a wrong %s gives %v", field, err)
		}
	}
}

// TestSnapshotsCarryEverything goes on from a snapshot exactly as from the book itself.
func TestSnapshotsCarryEverything(t *testing.T) {
	b := newBook(t)
	b.Meet("n", "operator", true, t0)
	for i := range 40 {
		observe(t, b, check([]Check{CheckExact, CheckGraded}[i%2], i%7 != 3 || i%2 == 0, t0.Add(time.Duration(i)*time.Hour)))
		observe(t, b, FromAnswer("n", time.Duration(i)*time.Second/8, t0.Add(time.Duration(i)*time.Minute)))
	}
	raw, err := b.Snapshot("n")
	if err != nil {
		t.Fatal(err)
	}
	back := newBook(t)
	if err := back.Restore("n", raw); err != nil {
		t.Fatal(err)
	}
	for _, book := range []*Book{b, back} {
		observe(t, book, check(CheckExact, false, t0.Add(50*time.Hour)))
	}
	again, err := back.Snapshot("n")
	if err != nil {
		t.Fatal(err)
	}
	if raw, _ = b.Snapshot("n"); !bytes.Equal(raw, again) {
		t.Errorf("snapshot %s, want %s", again, raw)
	}
	if Explain(b.Score("n", t0)) != Explain(back.Score("n", t0)) {
		t.Error("they explain themselves differently")
	}
	if raw, err := b.Snapshot("stranger"); raw != nil || err != nil {
		t.Errorf("a stranger's snapshot is %s, %v", raw, err)
	}
	b.Forget("n")
	if len(b.Nodes()) != 0 {
		t.Error("it was not forgotten")
	}
	for _, bad := range []string{"", "{}", `{"format":2}`, strings.Replace(string(again), `"suspended"`, `"king"`, 1), strings.Replace(string(again), `"bad":`, `"bad":-1`, 1)} {
		if err := back.Restore("n", []byte(bad)); !errors.Is(err, ErrSnapshot) {
			t.Errorf("%.60s gives %v", bad, err)
		}
	}
	if after, _ := back.Snapshot("n"); !bytes.Equal(after, again) {
		t.Error("a refused snapshot changed the book")
	}
}

func TestExplanationSaysEachPart(t *testing.T) {
	b := newBook(t)
	b.Meet("n", "", false, t0)
	o, _ := FromOutcome(Attempt{Node: "n", Reason: protocol.ReasonGPUFaulted, Blame: protocol.BlameNode, GPUSeconds: 60, At: t0, Ref: "lease abc"})
	observe(t, b, o)
	text := Explain(b.Score("n", t0))
	for _, want := range []string{
		"probation", "O 0.0", "completion", "correctness", "uptime", "performance", "responsiveness", "bad 2.00", "the node's GPU failed (node), weight 2.00",
		"O without it 0.0500", "lease abc", "25 checks and 72 h",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
}

// TestStatesMoveByTheTableOnly walks through every pair.
func TestStatesMoveByTheTableOnly(t *testing.T) {
	for _, s := range []State{StateProbation, StateVetted, StateSuspended, StateContained, StateDisqualified} {
		for _, e := range []event{eventVet, eventSuspend, eventContain, eventRelease, eventDisqualify, eventPardon} {
			n, err := s.next(e)
			if _, known := stateTable[stateKey{s, e}]; known == (err != nil) || err != nil && (n != s || !errors.Is(err, ErrBadTransition)) {
				t.Errorf("%s, %s: %s, %v", s, e, n, err)
			}
			if s == StateDisqualified && n != s && e != eventPardon {
				t.Errorf("%s leads from disqualified to %s", e, n)
			}
			if n == StateVetted && s != StateProbation && s != StateVetted {
				t.Errorf("%s leads from %s to vetted", e, s)
			}
		}
	}
	if _, err := State("king").next(eventVet); !errors.Is(err, ErrBadTransition) {
		t.Errorf("a state that does not exist: %v", err)
	}
}

func TestWordsOfOthersMoveAScoreByABound(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	for range 3_000 {
		own := protocol.Evidence{Good: rng.Float64() * 60, Bad: rng.Float64() * 10}
		var heard []Heard
		for range rng.IntN(10) {
			heard = append(heard, Heard{
				Operator: string(rune('a' + rng.IntN(4))), TrustGood: rng.Float64() * 30, TrustBad: rng.Float64() * 5,
				Evidence: protocol.Evidence{Good: rng.Float64() * 1e6, Bad: rng.Float64() * 1e6},
			})
		}
		merged, l := Merge(own, heard)
		mine, n := Lower(own.Good, own.Bad), own.Good+own.Bad
		hi := mine + .05
		if n < 20 {
			hi = max(hi, .55)
		}
		if l < mine-.05-1e-12 || l > hi+1e-12 {
			t.Fatalf("own %+v: L %g became %g", own, mine, l)
		}
		if more := merged.Good + merged.Bad - n; more < -1e-9 || more > MostOthers(n)+1e-9 {
			t.Fatalf("others weigh %g beside %g", more, n)
		}
		rng.Shuffle(len(heard), func(i, k int) { heard[i], heard[k] = heard[k], heard[i] })
		if _, again := Merge(own, heard); again != l {
			t.Fatalf("in another order L is %.17g instead of %.17g", again, l)
		}
	}
	if _, l := Merge(protocol.Evidence{}, []Heard{{Operator: "sybil", Evidence: protocol.Evidence{Good: 1e9}}}); math.Abs(l-.05) > 1e-12 {
		t.Errorf("a stranger's praise gives %g", l)
	}
	// A hundred issuers of one operator are one.
	one := []Heard{{Operator: "a", TrustGood: 8, Evidence: protocol.Evidence{Good: 20}}}
	many := make([]Heard, 100)
	for i := range many {
		many[i] = one[0]
	}
	a, _ := Merge(protocol.Evidence{Good: 100}, one)
	b, _ := Merge(protocol.Evidence{Good: 100}, many)
	if a != b {
		t.Errorf("%+v and %+v", a, b)
	}
	near(t, "with 5.33 good", a.Good, 105.333333333, 1e-9)
}

func TestAttestationsCarryEvidence(t *testing.T) {
	b := newBook(t)
	observe(t, b, Observation{Node: "n", Group: "g", Criterion: protocol.CriterionCompletion, Good: 8, Bad: 2, At: t0})
	s := Statement{Issuer: "rater", Seq: 3, Jobs: 1, Life: 90 * day}
	a, err := b.Attest("n", s, t0.Add(14*day))
	if err != nil || a.Subject != "n" || a.Issuer != "rater" || a.Group != "g" || a.Seq != 3 || len(a.Evidence) != 1 || a.Expires != t0.Add(44*day) {
		t.Fatalf("%+v, %v", a, err)
	}
	near(t, "good", a.Evidence[protocol.CriterionCompletion].Good, 4, 1e-9)
	b.Meet("quiet", "", false, t0)
	for _, id := range []protocol.PeerID{"stranger", "quiet"} {
		if _, err := b.Attest(id, s, t0); !errors.Is(err, ErrAttest) {
			t.Errorf("%s: %v", id, err)
		}
	}
	if _, err := b.Attest("n", Statement{Issuer: "n"}, t0); !errors.Is(err, ErrAttest) {
		t.Errorf("praising oneself: %v", err)
	}
}

// TestBooksAreSafeForConcurrentUse lets the race detector look.
func TestBooksAreSafeForConcurrentUse(t *testing.T) {
	b := newBook(t)
	done := make(chan struct{})
	for g := range 4 {
		go func() {
			defer func() { done <- struct{}{} }()
			id := protocol.PeerID([]byte{byte('a' + g%2)})
			for i := range 200 {
				o := Observation{Node: id, Criterion: protocol.CriterionCompletion, Good: 1, At: t0.Add(time.Duration(i))}
				if _, err := b.Observe(o); err != nil {
					t.Error(err)
				}
				b.Score(id, t0)
				b.Advance(id, t0)
				if _, err := b.Snapshot(id); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	for range 4 {
		<-done
	}
	if got := len(b.Nodes()); got != 2 {
		t.Errorf("%d nodes", got)
	}
}

func FuzzRestore(f *testing.F) {
	b := newBook(f)
	observe(f, b, check(CheckExact, false, t0))
	raw, err := b.Snapshot("n")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"format":1,"state":"probation","gate":{"Alpha":50,"Beta":0}}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		b := newBook(t)
		if err := b.Restore("n", in); err != nil {
			if len(b.Nodes()) > 0 {
				t.Fatal("a refused snapshot left a node")
			}
			return
		}
		s := b.Score("n", t0)
		if !(s.O >= 0 && s.O <= 1 && s.P >= 0 && s.P <= 1) {
			t.Fatalf("O %v, p %v", s.O, s.P)
		}
		_ = Explain(s)
		observe(t, b, check(CheckGraded, true, t0))
		again, err := b.Snapshot("n")
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Restore("n", again); err != nil {
			t.Fatal(err)
		}
	})
}

// BenchmarkRescore is trust.md 13's: 10,000 nodes.
func BenchmarkRescore(b *testing.B) {
	book := newBook(b)
	rng := rand.New(rand.NewPCG(1, 1))
	ids := make([]protocol.PeerID, 10_000)
	for i := range ids {
		ids[i] = protocol.PeerID([]byte{byte(i), byte(i >> 8)})
		for _, c := range criteria {
			observe(b, book, Observation{Node: ids[i], Criterion: c, Good: rng.Float64() * 200, Bad: rng.Float64() * 10, At: t0})
		}
	}
	for b.Loop() {
		for _, id := range ids {
			book.Score(id, t0.Add(day))
		}
	}
}
