// Package fetch decides which blocks of a tree to ask for, and when.
//
// The flow:
//  1. Run begins with the root. Nodes are asked for before leaves, since they name more to ask for.
//  2. What the Local has is read, not asked; its children are looked at in turn.
//  3. What is missing is asked for in flat lists, at most Window wants and WindowBytes at once, always on
//     one session, topped up as blocks arrive.
//  4. Each block goes through Local.Put, which verifies it, before its links are followed.
//  5. Nothing arriving for Stall ends it with a *StallError that names what is missing.
//
// Only volumes imports it, and wires it to a transfer and a store. It guarantees that when Run returns nil
// the whole tree is in the Local, and that it never waits for more than the window. It knows no peer and
// no protocol: our own transfer later takes Source's place, with priorities of its own (volumes.md 6).
package fetch
