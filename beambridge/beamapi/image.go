package beamapi

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"

	"github.com/gridbeam/gridbeam/beambridge/beamapi/beamwire"
)

// plainImages are the images that are no more than the Python of a node, by id: the hash of their specification.
var plainImages = func() map[string]string {
	m := map[string]string{plainImage(anyPython): anyPython}
	for minor := range 100 {
		v := anyPython + "." + strconv.Itoa(minor)
		m[plainImage(v)] = v
	}
	return m
}()

// plainImage is the id of an image that asks for a Python and nothing else.
func plainImage(python string) string { return imageID([]string{python}) }

// imageID hashes a specification: its parts in order, each with its length.
func imageID(parts []string) string {
	h := sha256.New()
	h.Write([]byte("gridbeam/image/1\x00"))
	for _, p := range parts {
		h.Write([]byte(strconv.Itoa(len(p)) + ":" + p))
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// specification is what both requests about images have in common.
type specification interface {
	GetPythonVersion() string
	GetPythonPackages() []string
	GetCommands() []string
	GetExistingImageUri() string
	GetBuildSteps() []*beamwire.BuildStep
	GetEnvVars() []string
	GetDockerfile() string
	GetBuildCtxObject() string
	GetSecrets() []string
}

// extras names what a specification has beyond a Python; nothing means that it is plain.
func extras(s specification) (names []string) {
	for _, f := range []struct {
		name string
		is   bool
	}{
		{"python_version " + s.GetPythonVersion(), s.GetPythonVersion() != "" && !isPython(s.GetPythonVersion())},
		{"python_packages", len(s.GetPythonPackages()) > 0},
		{"commands", len(s.GetCommands())+len(s.GetBuildSteps()) > 0},
		{"base_image", s.GetExistingImageUri() != ""},
		{"env_vars", len(s.GetEnvVars()) > 0},
		{"dockerfile", s.GetDockerfile() != ""},
		{"files of a build", s.GetBuildCtxObject() != "" && s.GetDockerfile() == ""},
		{"secrets", len(s.GetSecrets()) > 0},
	} {
		if f.is {
			names = append(names, f.name)
		}
	}
	return names
}

// identify returns the id of a specification.
func identify(s specification) string {
	python := cmp.Or(s.GetPythonVersion(), anyPython)
	if len(extras(s)) == 0 {
		return plainImage(python)
	}
	parts := []string{python, s.GetExistingImageUri(), s.GetDockerfile(), s.GetBuildCtxObject()}
	for _, list := range [][]string{s.GetPythonPackages(), s.GetCommands(), s.GetEnvVars(), s.GetSecrets()} {
		parts = slices.Concat(parts, []string{strconv.Itoa(len(list))}, list)
	}
	for _, step := range s.GetBuildSteps() {
		parts = append(parts, step.GetType(), step.GetCommand())
	}
	return imageID(parts)
}

func (s *Server) verifyImage(_ context.Context, _ Principal, req *beamwire.VerifyImageBuildRequest) (*beamwire.VerifyImageBuildResponse, error) {
	if id := req.GetImageId(); id != "" {
		_, known := plainImages[id]
		return &beamwire.VerifyImageBuildResponse{ImageId: id, Valid: known, Exists: known}, nil
	}
	return &beamwire.VerifyImageBuildResponse{ImageId: identify(req), Valid: true, Exists: len(extras(req)) == 0}, nil
}

// buildImage has nothing to build: a plain image is there, another cannot be made.
func (s *Server) buildImage(_ context.Context, _ Principal, req *beamwire.BuildImageRequest, send func(*beamwire.BuildImageResponse) error) error {
	answer := &beamwire.BuildImageResponse{ImageId: identify(req), Done: true, PythonVersion: cmp.Or(req.GetPythonVersion(), anyPython)}
	if more := extras(req); len(more) > 0 {
		answer.ImageId = ""
		answer.Msg = "images are not built here yet: functions run in the Python of a node. Leave out " + strings.Join(more, ", ") + "\n"
	} else {
		answer.Success = true
	}
	return send(answer)
}
