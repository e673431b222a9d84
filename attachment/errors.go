package attachment

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/weir-net/weir/ipam"
)

// StepError says which step has failed. Err is an error of the kernel or the disk. In a StepError of Node.Check, Err
// says which parts of the attachment are missing or wrong.
type StepError struct {
	Step string // such as "reserve addresses"
	Err  error
}

func (e *StepError) Error() string { return e.Step + ": " + e.Err.Error() }

func (e *StepError) Unwrap() error { return e.Err }

func failed(step string, err error) error {
	if err == nil {
		return nil
	}
	return &StepError{step, err}
}

func assignError(step string, err error) error {
	var exhausted *ipam.ExhaustedError
	var other *ipam.AssignedError
	if errors.As(err, &exhausted) || errors.As(err, &other) {
		return err
	}
	return failed(step, err)
}

// ExistsError is Make's error if an attachment with this ID exists already.
type ExistsError struct{ ID string }

func (e *ExistsError) Error() string { return e.ID + " is attached already; it must be deleted first" }

// NoRecordError is Load's error if no attachment has this ID.
type NoRecordError struct{ ID string }

func (e *NoRecordError) Error() string { return "there is no endpoint record " + e.ID }

// NetnsError says that the path is no network namespace, or is the node's own namespace. Err says which.
type NetnsError struct {
	Path string
	Err  error
}

func (e *NetnsError) Error() string { return e.Path + " is no network namespace" }

func (e *NetnsError) Unwrap() error { return e.Err }

// LinkError says that the pod's interface could not be made. Err is bridge.ErrInterfaceExists, ErrMACInUse,
// ErrRouteExists, or another failure.
type LinkError struct {
	IfName string
	MAC    net.HardwareAddr
	Err    error
}

func (e *LinkError) Error() string { return "attach the pod: " + e.Err.Error() }

func (e *LinkError) Unwrap() error { return e.Err }

// EnrolError says that the agent has not put the pod into its classes. Err is agentapi.ErrNoAgent,
// agentapi.ErrOutdated, or another failure.
type EnrolError struct{ Err error }

func (e *EnrolError) Error() string { return "policy can't be enforced on the pod: " + e.Err.Error() }

func (e *EnrolError) Unwrap() error { return e.Err }

// NoRuleError says that perhaps no rule uses the set of all pods. Then nothing denies the connections of a pod
// whose link is already up.
type NoRuleError struct {
	Set string
	Err error // why the agent has not enrolled the pod; if the rules can't be read, also why
}

func (e *NoRuleError) Error() string {
	return fmt.Sprintf(
		"the pod's connections can't be denied: no rule uses %s yet, and another plugin has set the pod's link up: %v",
		e.Set, e.Err)
}

func (e *NoRuleError) Unwrap() error { return e.Err }

// LeftoverError says that making an attachment has failed, and that a step could not be undone.
type LeftoverError struct {
	Cause error
	Err   error // why the step could not be undone
}

func (e *LeftoverError) Error() string {
	return fmt.Sprintf("%v; left behind until DEL: %v", e.Cause, e.Err)
}

func (e *LeftoverError) Unwrap() error { return e.Cause }

// NoAgentError says for how long no agent has been ready. 0 means that no agent has been ready since the node was
// started.
type NoAgentError struct{ For time.Duration }

func (e *NoAgentError) Error() string {
	if e.For == 0 {
		return "no weir-agent has been ready since the node was started"
	}
	return fmt.Sprintf("weir-agent has not been ready for %s", e.For.Round(time.Second))
}
