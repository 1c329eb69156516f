package beamapi

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/beambridge/beamapi/beamwire"
	"github.com/gridbeam/gridbeam/protocol"
)

// Bounds and defaults of a function (beam-interface.md 7).
const (
	maxRetries  = 5
	startWithin = 12 * time.Hour // how long a function's call waits for a node, where nothing is said
	maxStart    = 24 * time.Hour
	minWarm     = 10 * time.Second
	minMemory   = 256 << 20 // Beam's default of 128 MiB is less than an interpreter with cloudpickle and numpy
	maxName     = 128
	maxTimeout  = 365 * 24 * time.Hour
)

// Types of stub that are served, and those that are Beam's and are not yet.
var (
	servedTypes = []string{"function", "function/deployment"}
	beamTypes   = []string{"taskqueue", "endpoint", "asgi", "schedule", "pod", "sandbox", "container", "bot", "shell", "function"}
)

// placeholder stands for the code's tree, which the bridge knows and the request does not, while a job is judged.
const placeholder = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"

// refuse makes a *Refusal.
func refuse(format string, args ...any) error { return &Refusal{Text: fmt.Sprintf(format, args...)} }

// translate turns a request for a stub into one. volumes are the names of the workspace's volumes by id. Every error is a
// *Refusal.
func translate(req *beamwire.GetOrCreateStubRequest, volumes map[string]string) (Stub, error) {
	if err := offered(req); err != nil {
		return Stub{}, err
	}
	s := Stub{
		Name: req.GetName(), Type: req.GetStubType(), App: req.GetAppName(), Object: req.GetObjectId(), Image: req.GetImageId(), Digest: digest(req),
		Job: protocol.Job{Kind: protocol.JobMap, Inputs: protocol.JobInputs{Open: true}},
	}
	s.Job.Name = clip(strings.TrimSpace(s.Name), maxName)
	if s.Job.Name == "" {
		s.Job.Name = clip(req.GetHandler(), maxName)
	}
	env, asked, err := environ(req.GetEnv())
	if err != nil {
		return Stub{}, err
	}
	for _, step := range []func() error{
		func() error { return s.run(req, env) },
		func() error { return s.resources(req) },
		func() error { return s.policy(req) },
		func() error { return s.mounts(req.GetVolumes(), volumes) },
		func() error { return s.wish(req, asked) },
		s.judge,
	} {
		if err := step(); err != nil {
			return Stub{}, err
		}
	}
	s.warn(req)
	return s, nil
}

// offered refuses what is not served, before anything is made of it.
func offered(req *beamwire.GetOrCreateStubRequest) error {
	kind, _, _ := strings.Cut(req.GetStubType(), "/")
	switch {
	case slices.Contains(servedTypes, req.GetStubType()):
	case slices.Contains(beamTypes, kind):
		return refuse("@%s is not offered yet (stub type %s): this bridge runs @function", kind, req.GetStubType())
	default:
		return refuse("stub type %.64q is none of Beam's", req.GetStubType())
	}
	if !isHash(req.GetObjectId()) {
		return refuse("object_id %.80q is no object: upload the code first", req.GetObjectId())
	}
	for _, f := range []struct {
		asked bool
		what  string
	}{
		{len(req.GetSecrets()) > 0, "secrets="},
		{req.GetCallbackUrl() != "", "callback_url"},
		{len(req.GetAllowList()) > 0, "allow_list"},
		{req.GetTcp(), "tcp"},
		{len(req.GetPorts()) > 0, "ports"},
		{len(req.GetDisks()) > 0, "disks"},
		{req.GetDockerEnabled(), "docker_enabled"},
		{len(req.GetEntrypoint()) > 0, "entrypoint for a function"},
	} {
		if f.asked {
			return refuse("%s is not offered yet: leave it out", f.what)
		}
	}
	if a := req.GetAutoscaler(); a.GetMinContainers() > a.GetMaxContainers() && a.GetMaxContainers() > 0 {
		return refuse("autoscaler: min_containers %d is more than max_containers %d", a.GetMinContainers(), a.GetMaxContainers())
	}
	return nil
}

// digest tells requests apart. That a new stub is forced is no part of what is asked.
func digest(req *beamwire.GetOrCreateStubRequest) [32]byte {
	same := proto.CloneOf(req)
	same.ForceCreate = false
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(same)
	if err != nil {
		b = []byte(same.String()) // a text that is no UTF-8, which JSON and the wire both refuse before
	}
	return sha256.Sum256(append([]byte("gridbeam/stub/1\x00"), b...))
}

// run is what a call executes.
func (s *Stub) run(req *beamwire.GetOrCreateStubRequest, env map[string]string) error {
	host := req.GetPythonVersion()
	image, known := plainImages[req.GetImageId()]
	switch {
	case req.GetImageId() != "" && !known:
		return refuse("image %.80q is not offered: this bridge runs the Python of its nodes; use Image() without packages, commands or a base", req.GetImageId())
	case host == "":
		host = image
	}
	if host == "" {
		host = anyPython
	}
	if !isPython(host) {
		return refuse("python_version %.32q is not offered: say python3, or python3.N such as python3.11", req.GetPythonVersion())
	}
	if known && image != anyPython && image != host {
		return refuse("python_version %q is not the %q of the image", host, image)
	}
	run := &s.Job.Run
	run.Host, run.Handler, run.OnStart, run.Env = host, req.GetHandler(), req.GetOnStart(), env
	run.Workers = max(1, req.GetWorkers())
	// A function has no "for ever": what is negative or no number keeps to the node's default.
	if warm := float64(req.GetKeepWarmSeconds()); warm > 0 {
		if warm > maxTimeout.Seconds() {
			return refuse("keep_warm_seconds %g is more than a year", warm)
		}
		run.KeepWarm = protocol.Duration(max(minWarm, time.Duration(warm*float64(time.Second))))
	}
	return nil
}

// resources are what one call needs.
func (s *Stub) resources(req *beamwire.GetOrCreateStubRequest) error {
	r := &s.Job.Resources
	switch {
	case req.GetCpu() < 0 || req.GetCpu() > math.MaxUint32:
		return refuse("cpu: %d millicores are not offered", req.GetCpu())
	case req.GetMemory() < 0 || req.GetMemory() > math.MaxInt64>>20:
		return refuse("memory: %d MiB are not offered", req.GetMemory())
	}
	r.CPU = protocol.Cores(req.GetCpu())
	if m := req.GetMemory(); m > 0 {
		r.Memory = protocol.ByteSize(max(minMemory, m<<20))
	}
	gpu, err := gpuNames("gpu", strings.Split(req.GetGpu(), ","))
	if err != nil {
		return err
	}
	r.GPU, r.GPUCount = gpu, req.GetGpuCount()
	return nil
}

// policy is how long and how often. Older fields count only where the newer message is absent: clients that send it leave
// them 0.
func (s *Stub) policy(req *beamwire.GetOrCreateStubRequest) error {
	timeout, retries, ttl := req.GetTimeout(), req.GetRetries(), uint32(0)
	if p := req.GetTaskPolicy(); p != nil {
		timeout, retries, ttl = p.GetTimeout(), p.GetMaxRetries(), p.GetTtl()
	}
	p := &s.Job.Policy
	switch {
	case timeout > int64(maxTimeout/time.Second):
		return refuse("timeout %d s is more than a year; -1 is none", timeout)
	case timeout > 0:
		p.Timeout = protocol.Duration(time.Duration(timeout) * time.Second)
	}
	if retries > maxRetries {
		s.Warnings = append(s.Warnings, fmt.Sprintf("retries: %d are asked, a call is tried again at most %d times", retries, maxRetries))
		retries = maxRetries
	}
	p.Retries = &retries
	start := time.Duration(ttl) * time.Second
	switch {
	case start > maxStart:
		return refuse("ttl %d s is more than a day: a call waits at most 86400 s for a node", ttl)
	case start == 0:
		start = startWithin
	}
	p.Start = protocol.Duration(start)
	return nil
}

// mounts places volumes as Beam does: below /volumes, in the work directory, and where an absolute path says.
func (s *Stub) mounts(asked []*beamwire.Volume, names map[string]string) error {
	for _, v := range asked {
		if v.GetConfig() != nil {
			return refuse("volume at %.80q: buckets are not offered yet; use a Volume", v.GetMountPath())
		}
		name, ok := names[v.GetId()]
		if !ok {
			return refuse("volume %.80q is not there", v.GetId())
		}
		at, links, err := place(v.GetMountPath())
		if err != nil {
			return err
		}
		s.Job.Volumes = append(s.Job.Volumes, protocol.JobVolume{Name: name, At: at, Mode: "rw-shared", Links: links})
	}
	return nil
}

// volumesDir is where Beam has volumes.
const volumesDir = "/volumes"

// systemDirs are directories that a sandbox has itself.
var systemDirs = []string{"/bin", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run", "/sbin", "/sys", "/usr"}

// place turns a mount path into where the volume is and the further paths that lead there.
func place(mount string) (at string, links []string, err error) {
	clean := path.Clean(mount)
	rel := strings.TrimPrefix(clean, "/")
	switch {
	case mount == "" || rel == "" || rel == "." || rel == ".." || strings.HasPrefix(rel, "../") || strings.ContainsRune(mount, 0) || !utf8.ValidString(mount):
		return "", nil, refuse("mount_path %.80q is no path in the work directory or below /", mount)
	case path.IsAbs(clean) && slices.Contains(systemDirs, "/"+strings.SplitN(rel, "/", 2)[0]):
		return "", nil, refuse("mount_path %.80q: the sandbox has /%s itself; mount the volume at ./%s", mount, strings.SplitN(rel, "/", 2)[0], path.Base(clean))
	case strings.HasPrefix(clean, volumesDir+"/"):
		return clean, []string{strings.TrimPrefix(clean, volumesDir+"/")}, nil
	case path.IsAbs(clean):
		return volumesDir + clean, []string{rel, clean}, nil
	}
	return path.Join(volumesDir, rel), []string{rel}, nil
}

// wish applies what pool and environment ask.
func (s *Stub) wish(req *beamwire.GetOrCreateStubRequest, env wishes) error {
	pool, err := poolWishes(req.GetPool())
	if err != nil {
		return err
	}
	all, err := pool.and(env)
	if err != nil {
		return err
	}
	return all.apply(s)
}

// judge lets the job judge itself, with a code that stands for the real one.
func (s *Stub) judge() error {
	j := s.Job
	j.Run.Code = placeholder
	err := j.Validate()
	if err == nil {
		return nil
	}
	return refuse("%s", jobText(err))
}

// jobText is what is wrong with a job, in one line.
func jobText(err error) string {
	var all protocol.JobErrors
	if !errors.As(err, &all) {
		return err.Error()
	}
	texts := make([]string, len(all))
	for i := range all {
		texts[i] = all[i].Error()
	}
	return strings.Join(texts, "; ")
}

// warn tells what a client does not get although it may go on.
func (s *Stub) warn(req *beamwire.GetOrCreateStubRequest) {
	for _, f := range []struct {
		asked bool
		text  string
	}{
		{!req.GetBlockNetwork(), "functions have no network here: bring data by volumes and arguments"},
		{req.GetCheckpointEnabled(), "checkpoint_enabled: checkpoints are not available"},
		{req.GetAllowMarketplace(), "allow_marketplace: there is no marketplace; every node of the network is considered"},
		{len(req.GetInputs().GetFields())+len(req.GetOutputs().GetFields()) > 0, "inputs, outputs: schemas are kept and not checked yet"},
	} {
		if f.asked {
			s.Warnings = append(s.Warnings, f.text)
		}
	}
}

// anyPython is a Python of any minor version.
const anyPython = "python3"

// isPython says that a name is python3 or python3.N.
func isPython(name string) bool {
	minor, ok := strings.CutPrefix(name, anyPython)
	if !ok || minor == "" {
		return ok
	}
	digits, ok := strings.CutPrefix(minor, ".")
	n, err := strconv.ParseUint(digits, 10, 8)
	return ok && err == nil && n < 100 && strconv.FormatUint(n, 10) == digits
}

// isHash says that a text is a SHA-256 in lower-case hex.
func isHash(s string) bool {
	return len(s) == 2*sha256.Size && strings.Trim(s, "0123456789abcdef") == ""
}

// clip cuts a text to a number of bytes, between runes, without control characters.
func clip(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError {
			return -1
		}
		return r
	}, s)
	for len(s) > most {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}
