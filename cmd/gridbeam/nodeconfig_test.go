package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// offersCPU says whether a node run with some arguments and a node.yaml offers its processors beside broken GPUs.
func offersCPU(t *testing.T, file string, args ...string) (bool, error) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, nodeFileName), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	var offers bool
	run := nodeRunCommand()
	run.Flags().String("config-dir", filepath.Join(dir, "config"), "")
	run.RunE = func(c *cobra.Command, _ []string) error {
		f := nodeFlags{offerCPU: c.Flag("offer-cpu").Value.String() == "true"}
		cfg, err := nodeConfig(c, &f, dir)
		offers = cfg.OfferCPU
		return err
	}
	run.SetArgs(args)
	run.SilenceErrors, run.SilenceUsage = true, true
	err := run.ExecuteContext(t.Context())
	return offers, err
}

func TestProcessorsBesideBrokenGPUsAreOfferedByFlagOrFile(t *testing.T) {
	for _, c := range []struct {
		file string
		args []string
		want bool
	}{
		{"", nil, false},
		{"offer: {cpu: true}", nil, true},
		{"offer:\n  cpu: false", nil, false},
		{"", []string{"--offer-cpu"}, true},
		{"offer: {cpu: true}", []string{"--offer-cpu=false"}, false},
	} {
		if got, err := offersCPU(t, c.file, c.args...); err != nil || got != c.want {
			t.Errorf("%q with %v: %t, %v, want %t", c.file, c.args, got, err, c.want)
		}
	}
	if _, err := offersCPU(t, "offer: {gpu: true}"); err == nil || exitCode(err) != exitUsage || !strings.Contains(err.Error(), "gpu") {
		t.Errorf("an unknown key: %v", err)
	}
	if _, err := offersCPU(t, strings.ReplaceAll(nodeFileText, "\n#offer", "\noffer")); err != nil {
		t.Errorf("the line of node init's file: %v", err)
	}
}

func TestATypeThatDoesNotFitIsSaidInWordsOfYAML(t *testing.T) {
	path := filepath.Join(t.TempDir(), nodeFileName)
	if err := os.WriteFile(path, []byte("offer: {cpu: maybe}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := readNodeFile(path)
	if err == nil || !strings.Contains(err.Error(), "this is a string, want a bool") || !strings.Contains(err.Error(), "maybe") || strings.Contains(err.Error(), "struct") {
		t.Errorf("%v", err)
	}
}
