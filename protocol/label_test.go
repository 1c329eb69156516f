package protocol

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestLabelsOfAConfigurationAreReadOrRefusedWithAReason(t *testing.T) {
	now := noon
	signed, err := SignLabel(operator.key, nodeActor.id, "host.type", "datacenter", now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	text, err := LabelText(signed)
	if err != nil {
		t.Fatal(err)
	}
	for _, good := range []string{text, "rack=7", "a=b=c", strings.Repeat("k", 32) + "=" + strings.Repeat("v", 64)} {
		l, err := ParseLabel(good, nodeActor.id, now)
		if err != nil {
			t.Errorf("%.60s: %v", good, err)
			continue
		}
		issuer, verified := VerifyLabel(l, nodeActor.id, now)
		if verified != (good == text) || verified && issuer != operator.id {
			t.Errorf("%.60s: verified %v, by %s", good, verified, issuer)
		}
	}
	broken := []byte(text)
	broken[len(broken)-3] ^= 1
	for bad, c := range map[string]struct {
		text    string
		subject PeerID
		now     time.Time
		want    error
		says    string
	}{
		"no value":        {"rack=", nodeActor.id, now, ErrMalformed, "key=value"},
		"no key":          {"=7", nodeActor.id, now, ErrMalformed, "key=value"},
		"a word":          {"rack", nodeActor.id, now, ErrMalformed, "network label"},
		"an operator's":   {"operator=me", nodeActor.id, now, ErrMalformed, "operator"},
		"a long key":      {strings.Repeat("k", 33) + "=v", nodeActor.id, now, ErrBounds, "33"},
		"a long value":    {"k=" + strings.Repeat("v", 65), nodeActor.id, now, ErrBounds, "65"},
		"no base64":       {labelPrefix + "!", nodeActor.id, now, ErrMalformed, "label"},
		"changed":         {string(broken), nodeActor.id, now, ErrSignature, "host.type"},
		"about another":   {text, operator.id, now, ErrSignature, "not about"},
		"one that is old": {text, nodeActor.id, now.Add(2 * time.Hour), ErrSignature, "expired on"},
	} {
		if _, err := ParseLabel(c.text, c.subject, c.now); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestLabelsThatJobsAskForHaveTheirWords(t *testing.T) {
	for _, c := range []struct {
		key, value string
		good       bool
	}{
		{"host.type", "datacenter", true},
		{"host.type", "spaceship", false},
		{"compliance", "gdpr", true},
		{"compliance", "GDPR", false},
		{LabelTier, "ultra", true},
		{LabelTier, "mega", false},
		{LabelPriceTier, "1000", true},
		{LabelPriceTier, "150", false},
		{LabelLocation, "DE-BE", true},
		{LabelLocation, "Mars", false},
		{"rack", "anything", true},
	} {
		if err := CheckLabel(c.key, c.value); (err == nil) != c.good {
			t.Errorf("%s=%s: %v", c.key, c.value, err)
		}
	}
}
