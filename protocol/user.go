package protocol

import (
	"fmt"
	"strings"
)

// MaxUser bounds a user's name, in bytes.
const MaxUser = 128

// CheckUser says what is wrong with the name of a user, as *APIError with the field "user". Credit, tokens, volumes and
// Beam's workspaces are all kept under it, so there is one rule: 1 to 128 letters and digits of ASCII and . _ @ : + -,
// and not dots alone, which are no part of an address. An email address is a name.
func CheckUser(user string) error {
	bad := func(why string, args ...any) error {
		return &APIError{
			Code: CodeBadRequest, Field: "user", Text: fmt.Sprintf("user %.80q %s", user, fmt.Sprintf(why, args...)),
			Fix: fmt.Sprintf("use 1 to %d letters, digits and . _ @ : + -, such as ann or ann@example.com", MaxUser),
		}
	}
	switch {
	case user == "":
		return bad("is empty")
	case len(user) > MaxUser:
		return bad("has %d bytes", len(user))
	case strings.Trim(user, ".") == "":
		return bad("is dots alone")
	}
	for _, r := range user {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("._@:+-", r):
		default:
			return bad("has %q", r)
		}
	}
	return nil
}
