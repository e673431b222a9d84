//go:build !linux

package probe

import "syscall"

// Only nodes need this, and nodes run Linux.
func dontFragment(string, string, syscall.RawConn) error { return nil }
