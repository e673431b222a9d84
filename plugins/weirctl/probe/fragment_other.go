//go:build !linux

package probe

import "syscall"

// dontFragment does nothing: pods run Linux.
func dontFragment(string, string, syscall.RawConn) error { return nil }
