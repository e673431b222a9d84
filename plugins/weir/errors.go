package main

import (
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/attachment"
	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/ipam"
)

// These are texts for the field details of a CNI error. Each says the reason for the error, or its remedy.
const (
	strictDetails = "enforcement is strict: no pod starts unless weir-agent has put it into its class"
	freeDetails   = "it is free again when the pod that has it is deleted"
	routesDetails = "give the routes of a pod's second network a priority of their own, or leave them out: without a " +
		"default route among them, packets from this network's address leave by this interface"
)

func refuse(code uint, format string, args ...any) *types.Error {
	return types.NewError(code, fmt.Sprintf(format, args...), "")
}

var inputCodes = map[conf.ErrorKind]uint{
	conf.NotDecoded: types.ErrDecodingFailure, conf.UnknownKey: types.ErrUnsupportedField,
	conf.WrongValue: types.ErrInvalidNetworkConfig, conf.WrongVariable: types.ErrInvalidEnvironmentVariables,
}

// cniError chooses the CNI code of an error of the packages conf, attachment and ipam. Only this function chooses the
// codes of these errors. An error of this package, such as a missing prevResult, has its code already.
//
//   - 2, 3, 4, 6 and 7: the runtime or the configuration has passed something wrong.
//   - 11 ("try again later"): an address, a MAC, weir's rules or the agent is not available now.
//   - 50: STATUS has found no agent.
//   - 5 (I/O): the kernel or the disk has refused a step.
func cniError(err error) *types.Error {
	var (
		cni       *types.Error
		input     *conf.Error
		left      *attachment.LeftoverError
		exists    *attachment.ExistsError
		noRecord  *attachment.NoRecordError
		netns     *attachment.NetnsError
		link      *attachment.LinkError
		enrol     *attachment.EnrolError
		noRule    *attachment.NoRuleError
		noAgent   *attachment.NoAgentError
		exhausted *ipam.ExhaustedError
		other     *ipam.AssignedError
	)
	switch {
	case errors.As(err, &left):
		cause := cniError(left.Cause)
		details := fmt.Sprintf("left behind until DEL: %v", left.Err)
		if cause.Details != "" {
			details = cause.Details + "; " + details
		}
		return types.NewError(cause.Code, cause.Msg, details)
	case errors.As(err, &cni):
		return cni
	case errors.As(err, &input):
		return types.NewError(inputCodes[input.Kind], input.Message, input.Details)
	case errors.As(err, &exists):
		return refuse(types.ErrInvalidEnvironmentVariables, "CNI_CONTAINERID, CNI_IFNAME: %v", exists)
	case errors.As(err, &netns):
		return types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_NETNS: "+netns.Error(), netns.Err.Error())
	case errors.As(err, &noRecord):
		return refuse(types.ErrUnknownContainer, "%v", noRecord)
	case errors.As(err, &exhausted):
		return types.NewError(types.ErrTryAgainLater, exhausted.Error(), exhausted.Remedy())
	case errors.As(err, &other):
		return types.NewError(types.ErrTryAgainLater, other.Error(), freeDetails)
	case errors.As(err, &link):
		return linkError(link)
	case errors.Is(err, bridge.ErrBypassesForward):
		return refuse(types.ErrInvalidNetworkConfig, "prevResult: %v", err)
	case errors.As(err, &enrol) && errors.Is(enrol, agentapi.ErrOutdated):
		return refuse(types.ErrTryAgainLater, "the pod can't be reached: %v", enrol.Err)
	case errors.As(err, &enrol):
		return types.NewError(types.ErrTryAgainLater, enrol.Error(), strictDetails)
	case errors.As(err, &noRule):
		return types.NewError(types.ErrTryAgainLater, noRule.Error(), "weir-agent makes the rules when it starts")
	case errors.As(err, &noAgent):
		return types.NewError(types.ErrPluginNotAvailable, noAgent.Error(), strictDetails)
	}
	return refuse(types.ErrIOFailure, "%v", err)
}

// linkError returns the CNI error for an interface that could not be made. If a key of the configuration or a
// variable is the cause, the message begins with the name of that key or variable.
func linkError(e *attachment.LinkError) *types.Error {
	switch {
	case errors.Is(e.Err, bridge.ErrRouteExists):
		return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("routes: %v", e.Err), routesDetails)
	case errors.Is(e.Err, bridge.ErrInterfaceExists):
		return refuse(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME: %s: %v", e.IfName, e.Err)
	case errors.Is(e.Err, bridge.ErrMACInUse):
		return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("mac: %s: %v", e.MAC, e.Err), freeDetails)
	}
	return refuse(types.ErrIOFailure, "%v", e)
}
