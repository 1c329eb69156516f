package main

import "testing"

func TestTextsOfStrangersCanNeitherSteerNorDeceive(t *testing.T) {
	for in, want := range map[string]string{
		"NVIDIA H100 – größer 日本": "NVIDIA H100 – größer 日本",
		"a\x1b[31mb\r\n\u009bc":   "a?[31mb???c",
		"exe.\u202egpj":           `exe.\u{202e}gpj`,
		"H\u200b100\ufeff\u2066":  `H\u{200b}100\u{feff}\u{2066}`,
		"a\u2028b\u3164\ufe0f":    `a\u{2028}b\u{3164}\u{fe0f}`,
	} {
		if got := printable(in); got != want {
			t.Errorf("%q is printed as %q, want %q", in, got, want)
		}
	}
}
