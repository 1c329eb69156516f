// Package doccheck reads the source tree and names everything exported that nobody explained.
//
// The flow:
//  1. Check parses every Go file below a root, for all platforms and build tags, apart from tests and
//     generated files.
//  2. It gives one Gap for each package without a doc comment, each doc.go that is longer than a page, and
//     each exported type, function, method, constant, variable, struct field and interface method without a
//     comment of its own or of its group.
//
// A comment counts when it stands above the name or behind it on the line. The comment above a group of
// constants or variables counts for all of it; a comment above a name, or above the type, counts for what
// follows it without a blank line when it speaks of that by name.
//
// Its own test runs it over this repository; nobody else imports it. It sees that a comment is there, not
// that it is true.
package doccheck
