//go:build !linux

package main

import "github.com/weir-net/weir/agentapi"

// Without Linux there are no sets to read, so fromKernel only returns the error.
func fromKernel(noAgent error) (*agentapi.Status, error) { return nil, noAgent }
