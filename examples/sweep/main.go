package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
)

// config is one point of the grid.
type config struct {
	Epochs int     `json:"epochs"`
	Hidden int     `json:"hidden"`
	LR     float64 `json:"lr"`
	Seed   uint64  `json:"seed"`
}

// score counts right answers; the accuracy is written with six decimals, so that it has one spelling.
type score struct {
	Correct  int         `json:"correct"`
	Total    int         `json:"total"`
	Accuracy json.Number `json:"accuracy"`
}

// result is what one run writes.
type result struct {
	Config     config `json:"config"`
	Data       string `json:"data_sha256"`
	Model      string `json:"model_sha256"`
	Train      score  `json:"train"`
	Validation score  `json:"validation"`
	Test       score  `json:"test"`
}

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "sweep:", err)
		if errors.Is(err, errUsage) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

var errUsage = errors.New("wrong use")

// run is main with its arguments and its standard output as values.
func run(args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("sweep", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	data := flags.String("data", "/data", "directory with "+dataFile)
	out := flags.String("out", "/out", "directory for results")
	text := flags.String("config", "", `configuration, {"epochs":20,"hidden":32,"lr":0.1,"seed":1}`)
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	cfg, err := parseConfig(*text)
	if err != nil {
		return fmt.Errorf("%w: --config %s: %w", errUsage, *text, err)
	}
	digits, err := loadDataset(os.DirFS(*data))
	if err != nil {
		return err
	}
	res := evaluate(cfg, digits)
	b, err := json.MarshalIndent(res, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the result: %w", err)
	}
	dir := filepath.Join(*out, "results")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, cfg.name()+".json"), append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	_, err = fmt.Fprintf(stdout, "%s: validation accuracy %s\n", cfg.name(), res.Validation.Accuracy)
	return err
}

// parseConfig reads and checks a configuration; each field has to be there, none may be unknown.
func parseConfig(text string) (config, error) {
	var c config
	dec := json.NewDecoder(bytes.NewReader([]byte(text)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return c, err
	}
	if dec.More() {
		return c, errors.New("something follows the JSON object")
	}
	switch {
	case c.Epochs < 1 || c.Epochs > 10_000:
		return c, fmt.Errorf("epochs is %d, want 1..10000", c.Epochs)
	case c.Hidden < 1 || c.Hidden > 4096:
		return c, fmt.Errorf("hidden is %d, want 1..4096", c.Hidden)
	case !(c.LR > 0 && c.LR <= 10):
		return c, fmt.Errorf("lr is %v, want more than 0 and at most 10", c.LR)
	}
	return c, nil
}

// name is unique per configuration: the results of all chunks are merged into one directory.
func (c config) name() string {
	return fmt.Sprintf("hidden-%d_lr-%s_epochs-%d_seed-%d",
		c.Hidden, strconv.FormatFloat(c.LR, 'f', -1, 64), c.Epochs, c.Seed)
}

// evaluate trains one configuration and scores it.
func evaluate(c config, data *dataset) result {
	random := rand.New(rand.NewPCG(c.Seed, 0))
	n := newNetwork(c.Hidden, random)
	n.train(data.train, c.LR, c.Epochs, random)
	return result{
		Config:     c,
		Data:       fmt.Sprintf("%x", data.sum),
		Model:      fmt.Sprintf("%x", n.sum()),
		Train:      newScore(n, data.train),
		Validation: newScore(n, data.validation),
		Test:       newScore(n, data.test),
	}
}

func newScore(n *network, examples []example) score {
	correct := n.correct(examples)
	accuracy := strconv.FormatFloat(float64(correct)/float64(len(examples)), 'f', 6, 64)
	return score{Correct: correct, Total: len(examples), Accuracy: json.Number(accuracy)}
}
