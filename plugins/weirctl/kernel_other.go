//go:build !linux

package main

import "github.com/weir-net/weir/agentapi"

// Only a Linux kernel has weir's sets.
func fromKernel(noAgent error) (*agentapi.Status, error) { return nil, noAgent }
