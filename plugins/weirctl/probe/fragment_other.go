//go:build !linux

package probe

import "syscall"

// dontFragment does nothing here: only pods need it, and they run Linux.
func dontFragment(string, string, syscall.RawConn) error { return nil }
