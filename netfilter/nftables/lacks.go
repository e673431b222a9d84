package nftables

import "context"

// Lacks returns what the node lacks.
func Lacks(context.Context) []string { return nil }
