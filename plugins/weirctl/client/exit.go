package client

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

// weirctl ends with one of these codes, so that scripts can tell the outcomes apart.
const (
	// ExitOK means success. For "weirctl explain", success means that the connection is allowed.
	ExitOK = 0
	// ExitError means that the command could not get an answer.
	ExitError = 1
	// ExitUsage means that an argument is wrong, or names something that doesn't exist.
	ExitUsage = 2
	// ExitDropped means that the connection is dropped, at least in part, or that there is nothing to reach, such
	// as a Service without endpoints.
	ExitDropped = 3
	// ExitDiffers means that the kernel doesn't enforce the policies.
	ExitDiffers = 4
	// ExitChanges means that a change opens or closes connections (weirctl diff).
	ExitChanges = 5
	// ExitTimeout means that the awaited event has not happened in time (weirctl wait and weirctl check).
	ExitTimeout = 6
	// ExitBroken means that weirctl check has found a fault of the node or of the cluster's network.
	ExitBroken = 7
)

// exit is an error with an exit code. If err is nil, weirctl prints nothing.
type exit struct {
	code int
	err  error
}

func (e *exit) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exit) Unwrap() error { return e.err }

// Exit returns an error that makes weirctl end with the code. weirctl prints err unless it is nil.
func Exit(code int, err error) error { return &exit{code, err} }

func Usage(err error) error { return &exit{ExitUsage, err} }

// NoArgs is like cobra.NoArgs, but its error makes weirctl end with ExitUsage.
func NoArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	path := cmd.CommandPath()
	return Usage(fmt.Errorf("%s takes no argument, and got %q; see %s --help", path, args[0], path))
}

// Code returns the exit code for a command's error, and the text to print. The text may be empty.
func Code(err error) (code int, text string) {
	var e *exit
	switch {
	case err == nil:
		return ExitOK, ""
	case errors.As(err, &e):
		return e.code, e.Error()
	}
	return ExitError, err.Error()
}
