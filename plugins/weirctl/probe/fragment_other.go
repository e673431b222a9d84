//go:build !linux

package probe

import "syscall"

// On systems other than Linux, dontFragment does nothing: only pods need it, and pods run Linux.
func dontFragment(string, string, syscall.RawConn) error { return nil }
