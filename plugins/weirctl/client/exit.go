package client

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

// Exit codes of weirctl.
const (
	// ExitOK: the command succeeded, and what it was asked about is allowed.
	ExitOK = 0
	// ExitError: the command could not find out what it was asked.
	ExitError = 1
	// ExitUsage: the command's arguments are wrong, or name what doesn't exist.
	ExitUsage = 2
	// ExitDropped: the connection is dropped, at least in part, or there is nothing to reach.
	ExitDropped = 3
	// ExitDiffers: the kernel doesn't enforce what the policies mean.
	ExitDiffers = 4
	// ExitChanges: a change opens or closes connections.
	ExitChanges = 5
	// ExitTimeout: what the command waited for has not happened in time.
	ExitTimeout = 6
	// ExitBroken: a check has found something that is broken.
	ExitBroken = 7
)

// exit is an error with an exit code. Without an error, weirctl prints nothing more.
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

// Exit returns an error that makes weirctl end with the code. If err isn't nil, weirctl prints err.
func Exit(code int, err error) error { return &exit{code, err} }

// Usage returns the error of a wrong argument. It makes weirctl end with ExitUsage.
func Usage(err error) error { return &exit{ExitUsage, err} }

// NoArgs refuses all arguments of a command, with a usage error.
func NoArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	path := cmd.CommandPath()
	return Usage(fmt.Errorf("%s takes no argument, and got %q; see %s --help", path, args[0], path))
}

// Code returns the exit code for a command's error, and the text to print; "" if there is none.
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
