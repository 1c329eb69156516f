package protocol

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
)

func TestFunctionInputsReadBackAsWritten(t *testing.T) {
	tree := cid.MustParse("bafybeigofgfcedqmjrpkkpaogluahhrlsr2exp2f7xsei2tfiurl433vym")
	for _, in := range []FunctionInput{
		{},
		{Task: "t1", Encoding: EncodingPickle, Args: []byte{0x80, 5, 0, '\n', ' '}},
		{Task: "t1", Encoding: EncodingJSON, Args: []byte(`{"args": [1, "a b"], "kwargs": {}}`)},
		{Task: "t1", Encoding: EncodingJSON, Args: []byte{'"', 0xff, '"'}},
		{Task: "t1", Encoding: EncodingPickle, Root: tree},
		{Encoding: EncodingPickle, Args: []byte{}},
	} {
		got, err := ParseFunctionInput(in.String())
		if err != nil || got.Task != in.Task || got.Encoding != in.Encoding || !bytes.Equal(got.Args, in.Args) || got.Root != in.Root {
			t.Errorf("%+v came back as %+v, %v", in, got, err)
		}
	}
	for _, text := range []string{"", "t pickle base64", "t pickle base64 ?", "t marshal base64 AA==", "t pickle tree nothing", "t pickle hex 00", strings.Repeat("t", 65) + " json text 1"} {
		if got, err := ParseFunctionInput(text); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q was read as %+v, %v", text, got, err)
		}
	}
}

func FuzzFunctionInput(f *testing.F) {
	f.Add("-")
	f.Add("task pickle base64 gAVLAS4=")
	f.Add("task json text {}")
	f.Fuzz(func(t *testing.T, text string) {
		in, err := ParseFunctionInput(text)
		if err != nil {
			return
		}
		if again, err := ParseFunctionInput(in.String()); err != nil || again.String() != in.String() {
			t.Errorf("%q reads as %+v, and that as %+v, %v", text, in, again, err)
		}
	})
}

func TestTermsOfAFunction(t *testing.T) {
	terms := fixedTerms()
	terms.Run = Run{Host: "python3.11", Function: &Function{
		Handler: "app:f", OnStart: "app:load", Code: terms.Run.Module, CodeBytes: 7, Workers: 2, Timeout: 1e9, KeepWarm: 2e9, Tenant: "ws",
	}, Env: map[string]string{"A": "b"}}
	terms.Volumes[0].Mode, terms.Volumes[0].Links = "rw-shared", []string{"data", "/data2"}
	raw, err := terms.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := DecodeJobTerms(raw)
	if err != nil || *back.Run.Function != *terms.Run.Function || strings.Join(back.Volumes[0].Links, " ") != "data /data2" {
		t.Errorf("came back as %+v, %v", back.Run.Function, err)
	}
	for name, spoil := range map[string]func(*JobTerms){
		"run.function":          func(x *JobTerms) { x.Run.Command = []string{"p"} },
		"run.function.handler":  func(x *JobTerms) { x.Run.Function.Handler = "/etc/app:f" },
		"run.function.on_start": func(x *JobTerms) { x.Run.Function.OnStart = "f" },
		"run.function.code":     func(x *JobTerms) { x.Run.Function.Code = cid.Undef },
		"run.function.workers":  func(x *JobTerms) { x.Run.Function.Workers = 0 },
		"run.function.timeout":  func(x *JobTerms) { x.Run.Function.KeepWarm = -1 },
		"run.function.tenant":   func(x *JobTerms) { x.Run.Function.Tenant = "" },
		"volume.links":          func(x *JobTerms) { x.Volumes[0].Links = []string{"../up"} },
	} {
		bad, err := DecodeJobTerms(raw)
		if err != nil {
			t.Fatal(err)
		}
		spoil(&bad)
		if err := bad.Validate(); !errors.Is(err, ErrBounds) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestJobOfAFunction(t *testing.T) {
	job := Job{
		Name: "f", Kind: JobMap, Inputs: JobInputs{Open: true},
		Run: JobRun{Host: "python3", Handler: "app:f", Code: "bafybeigofgfcedqmjrpkkpaogluahhrlsr2exp2f7xsei2tfiurl433vym"},
	}
	if err := job.Validate(); err != nil {
		t.Fatal(err)
	}
	for field, spoil := range map[string]func(*Job){
		"run.handler":   func(j *Job) { j.Run.Handler = "f" },
		"run.code":      func(j *Job) { j.Run.Code = "x" },
		"run.command":   func(j *Job) { j.Run.Command = []string{"p"} },
		"run.on_start":  func(j *Job) { j.Run.OnStart = "x" },
		"run.workers":   func(j *Job) { j.Run.Workers = 1000 },
		"run.keep_warm": func(j *Job) { j.Run.KeepWarm = -1 },
	} {
		bad := job
		spoil(&bad)
		var all JobErrors
		if err := bad.Validate(); !errors.As(err, &all) || all[0].Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	job.Run.Handler = ""
	if err := job.Validate(); err == nil || !strings.Contains(err.Error(), "run.handler") {
		t.Errorf("code without a handler: %v", err)
	}
}

func TestInputOutcomesAreJudged(t *testing.T) {
	good := InputOutcome{Reason: ReasonDone, Encoding: EncodingPickle, RunMicros: 3, Log: []InputLog{{LogStdout, "hello"}}}
	raw, err := json.Marshal(good)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := ParseInputOutcome(raw); err != nil || back.RunMicros != 3 || back.Log[0] != good.Log[0] {
		t.Errorf("came back as %+v, %v", back, err)
	}
	for field, text := range map[string]string{
		"reason": `{}`, "exit": `{"reason":1,"exit":1,"encoding":"json"}`, "encoding": `{"reason":1,"encoding":"marshal"}`,
		"run_us": `{"reason":10,"exit":1,"cpu_ms":-1}`, "text": `{"reason":10,"exit":1,"text":"` + strings.Repeat("x", MaxInputText+1) + `"}`,
		"log": `{"reason":10,"exit":1,"log":[{"s":1,"l":"` + strings.Repeat("x", 2*MaxInputLog) + `"}]}`, "size": strings.Repeat(" ", maxOutcome+1),
	} {
		if _, err := ParseInputOutcome([]byte(text)); !errors.Is(err, ErrBounds) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	if _, err := ParseInputOutcome([]byte(`[`)); !errors.Is(err, ErrMalformed) {
		t.Errorf("no JSON: %v", err)
	}
}

func FuzzInputOutcome(f *testing.F) {
	f.Add([]byte(`{"reason":1,"exit":0,"encoding":"pickle","log":[{"s":2,"l":"x"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := ParseInputOutcome(b)
		if err == nil && (o.Reason == ReasonNone || len(o.Text) > MaxInputText) {
			t.Errorf("%q was let through as %+v", b, o)
		}
	})
}
