// Package explain tells why a connection is allowed or dropped: which policies isolate its ends, which rule allows it,
// and what would have to change so that it is allowed. It is pure: callers read the objects and print the explanations.
package explain
