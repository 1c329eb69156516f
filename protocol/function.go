package protocol

import (
	"encoding/base64"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/ipfs/go-cid"
)

// ArgsFile is the one file of a tree of arguments that are too large to travel inside a lease.
const ArgsFile = "args"

// ArgsInline bounds the arguments of one input that travel inside a lease, in bytes; larger ones are a tree.
const ArgsInline = 32 << 10

// Encodings of a function's arguments and results.
const (
	EncodingPickle = "pickle" // EncodingPickle is Python's pickle of {"args": (…), "kwargs": {…}}, or of a result.
	EncodingJSON   = "json"   // EncodingJSON is JSON of the same.
)

// FunctionInput is one input of a function, as its text in a lease says it. The zero value is an input that was
// withdrawn: nothing is called.
type FunctionInput struct {
	// Encoding is EncodingPickle or EncodingJSON, empty for a withdrawn input.
	Encoding string
	// Args are the arguments, unless Root is set.
	Args []byte
	// Root is a tree whose file ArgsFile holds them.
	Root cid.Cid
	// Task names the call, for the code that is called: at most 64 bytes.
	Task string
}

// maxTask bounds FunctionInput.Task, in bytes.
const maxTask = 64

// String is the input's text: task, encoding, where the arguments are, and they or their CID.
func (f FunctionInput) String() string {
	switch {
	case f.Encoding == "":
		return "-"
	case f.Root.Defined():
		return f.Task + " " + f.Encoding + " tree " + f.Root.String()
	case f.Encoding == EncodingJSON && utf8.Valid(f.Args):
		return f.Task + " json text " + string(f.Args)
	default:
		return f.Task + " " + f.Encoding + " base64 " + base64.StdEncoding.EncodeToString(f.Args)
	}
}

// ParseFunctionInput reads what String has written. It returns ErrMalformed.
func ParseFunctionInput(text string) (f FunctionInput, err error) {
	if text == "-" {
		return f, nil
	}
	part := strings.SplitN(text, " ", 4)
	if len(part) != 4 || len(part[0]) > maxTask || part[1] != EncodingPickle && part[1] != EncodingJSON {
		return f, fmt.Errorf("%w: a function's input is TASK ENCODING KIND ARGUMENTS, not %.40q", ErrMalformed, text)
	}
	f.Task, f.Encoding = part[0], part[1]
	switch part[2] {
	case "tree":
		f.Root, err = cid.Decode(part[3])
	case "text":
		f.Args = []byte(part[3])
	case "base64":
		f.Args, err = base64.StdEncoding.Strict().DecodeString(part[3])
	default:
		err = fmt.Errorf("%.20q is no kind of arguments", part[2])
	}
	if err != nil {
		return FunctionInput{}, fmt.Errorf("%w: the arguments of a function's input: %w", ErrMalformed, err)
	}
	return f, nil
}
