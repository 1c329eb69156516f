package beamapi

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/gridbeam/gridbeam/protocol"
)

// ourPrefix begins the names of variables that are for the bridge; they never reach the function.
const ourPrefix = "GRIDBEAM_"

// maxAllow bounds the names of GRIDBEAM_RESULT_ALLOW.
const maxAllow = 64

// dotted is a name in a module, as a pickle has it.
var dotted = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+$`)

// ours are the variables that the bridge reads, without their prefix; nothing else may begin with it.
var ours = map[string]func(w *wishes, value string) error{
	"GPU": func(w *wishes, v string) (err error) {
		w.gpu, err = gpuNames(ourPrefix+"GPU", strings.Split(v, ","))
		return err
	},
	"MIN_VRAM": func(w *wishes, v string) (err error) {
		w.minVRAM, err = protocol.ParseVRAM(v)
		return err
	},
	"MIN_REPUTATION": func(w *wishes, v string) (err error) {
		w.minReputation, err = strconv.ParseFloat(v, 64)
		if err != nil || !(w.minReputation >= 0 && w.minReputation <= 1) {
			return refuse("%.64q is no number of 0 to 1, such as 0.9", v)
		}
		return nil
	},
	"REGIONS": func(w *wishes, v string) (err error) {
		w.regions, err = places(ourPrefix+"REGIONS", strings.Split(v, ","))
		return err
	},
	"NODES": func(w *wishes, v string) (err error) {
		w.nodes, err = protocol.ParseNodeRange(v)
		return err
	},
	"MAX_RTT": func(w *wishes, v string) (err error) {
		w.maxRTT, err = protocol.ParseDuration(v)
		if err == nil && w.maxRTT <= 0 {
			return refuse("%.64q is no length of time above 0", v)
		}
		return err
	},
	"WHERE": func(w *wishes, v string) error {
		_, err := protocol.ParseFilter(v)
		w.where = v
		return err
	},
	"REDUNDANCY": func(w *wishes, v string) error {
		n, err := strconv.ParseUint(v, 10, 8)
		if err != nil || n < 1 || n > 9 {
			return refuse("%.64q is no whole number of 1 to 9", v)
		}
		w.redundancy = uint32(n)
		return nil
	},
	"PREFER": func(w *wishes, v string) error { return word(&w.prefer, v, "fast", "balanced", "cheap") },
	"MAX_SPEND": func(w *wishes, v string) error {
		m, err := protocol.ParseMoney(v)
		if err == nil && m <= 0 {
			return refuse("%.64q is no amount of US dollars above 0", v)
		}
		w.maxSpend = &m
		return err
	},
	"DEADLINE": func(w *wishes, v string) (err error) {
		w.life, err = protocol.ParseDuration(v)
		if err == nil && w.life <= 0 {
			return refuse("%.64q is no length of time above 0", v)
		}
		return err
	},
	"POOL": func(w *wishes, v string) error {
		w.pool = v
		return nil
	},
	"RESULT_PICKLE": func(w *wishes, v string) error {
		var how string
		err := word(&how, v, "plain", "any")
		w.resultAny = how == "any"
		return err
	},
	"RESULT_ALLOW": func(w *wishes, v string) error {
		for name := range strings.SplitSeq(v, ",") {
			name = strings.TrimSpace(name)
			if !dotted.MatchString(name) {
				return refuse("%.80q is no name in a module, such as main.Point", name)
			}
			w.resultAllow = append(w.resultAllow, name)
		}
		if len(w.resultAllow) > maxAllow {
			return refuse("has %d names, at most %d fit", len(w.resultAllow), maxAllow)
		}
		return nil
	},
}

// word takes one of a few.
func word(to *string, v string, words ...string) error {
	if !slices.Contains(words, v) {
		return refuse("%.64q is none of %s", v, strings.Join(words, ", "))
	}
	*to = v
	return nil
}

// environ splits variables, NAME=VALUE each, into those of the function and what the others ask of the bridge. Of two with
// one name the later holds.
func environ(list []string) (map[string]string, wishes, error) {
	env, asked := make(map[string]string, len(list)), make(map[string]string)
	for _, entry := range list {
		name, value, ok := strings.Cut(entry, "=")
		switch {
		case !ok || name == "":
			return nil, wishes{}, refuse("env: %.80q is no NAME=VALUE", entry)
		case strings.HasPrefix(name, ourPrefix):
			asked[strings.TrimPrefix(name, ourPrefix)] = strings.TrimSpace(value)
		default:
			env[name] = value
		}
	}
	var w wishes
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		value := asked[name]
		read, known := ours[name]
		switch {
		case !known:
			return nil, wishes{}, refuse("env: %s%.64s is not known; there are %s", ourPrefix, name, strings.Join(ourNames(), " "))
		case value == "":
			return nil, wishes{}, refuse("env: %s%s is empty: leave it out", ourPrefix, name)
		}
		if err := read(&w, value); err != nil {
			text := strings.TrimPrefix(strings.TrimPrefix(err.Error(), "protocol: "), ourPrefix+name+": ")
			return nil, wishes{}, refuse("env: %s%s: %s", ourPrefix, name, text)
		}
	}
	if len(env) == 0 {
		env = nil
	}
	return env, w, nil
}

// ourNames are the variables in order.
func ourNames() (names []string) {
	for name := range ours {
		names = append(names, ourPrefix+name)
	}
	slices.Sort(names)
	return names
}
