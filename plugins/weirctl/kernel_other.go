//go:build !linux

package main

import "github.com/weir-net/weir/agentapi"

// fromKernel returns noAgent: only the kernel of a node has sets.
func fromKernel(noAgent error) (*agentapi.Status, error) { return nil, noAgent }
