package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/attachment"
	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/ipam"
)

func TestErrors(t *testing.T) {
	link := func(err error) error {
		return &attachment.LinkError{
			IfName: "eth0",
			MAC:    net.HardwareAddr{2, 0, 0, 0, 0, 9},
			Err:    fmt.Errorf("add it: %w", err),
		}
	}
	held := &ipam.AssignedError{Addr: netip.MustParseAddr("10.88.0.2"), Owner: "c2:eth0"}
	disk := errors.New("no space left on device")
	for _, tc := range []struct {
		err  error
		want types.Error
	}{
		{&attachment.StepError{Step: "delete", Err: disk}, types.Error{Code: 5, Msg: "delete: no space left on device"}},
		{
			&attachment.ExistsError{ID: "c1:eth0"},
			types.Error{Code: 4, Msg: "CNI_CONTAINERID, CNI_IFNAME: c1:eth0 is attached already; it must be deleted first"},
		},
		{&attachment.NoRecordError{ID: "c1:eth0"}, types.Error{Code: 3, Msg: "there is no endpoint record c1:eth0"}},
		{
			&attachment.NetnsError{Path: "/x", Err: disk},
			types.Error{Code: 4, Msg: "CNI_NETNS: /x is no network namespace", Details: disk.Error()},
		},
		{held, types.Error{Code: 11, Msg: held.Error(), Details: freeDetails}},
		{
			&ipam.ExhaustedError{},
			types.Error{Code: 11, Msg: (&ipam.ExhaustedError{}).Error(), Details: (&ipam.ExhaustedError{}).Remedy()},
		},
		{link(disk), types.Error{Code: 5, Msg: "attach the pod: add it: no space left on device"}},
		{
			link(bridge.ErrInterfaceExists),
			types.Error{Code: 4, Msg: "CNI_IFNAME: eth0: add it: " + bridge.ErrInterfaceExists.Error()},
		},
		{
			link(bridge.ErrMACInUse),
			types.Error{Code: 11, Msg: "mac: 02:00:00:00:00:09: add it: " + bridge.ErrMACInUse.Error(), Details: freeDetails},
		},
		{
			link(bridge.ErrRouteExists),
			types.Error{Code: 7, Msg: "routes: add it: " + bridge.ErrRouteExists.Error(), Details: routesDetails},
		},
		{
			fmt.Errorf("eth0: %w", bridge.ErrBypassesForward),
			types.Error{Code: 7, Msg: "prevResult: eth0: " + bridge.ErrBypassesForward.Error()},
		},
		{
			&attachment.EnrolError{Err: agentapi.ErrNoAgent},
			types.Error{
				Code:    11,
				Msg:     "policy can't be enforced on the pod: " + agentapi.ErrNoAgent.Error(),
				Details: strictDetails,
			},
		},
		{
			&attachment.EnrolError{Err: agentapi.ErrOutdated},
			types.Error{Code: 11, Msg: "the pod can't be reached: " + agentapi.ErrOutdated.Error()},
		},
		{&attachment.NoRuleError{Set: "ipset weir-pods", Err: agentapi.ErrNoAgent}, types.Error{
			Code: 11,
			Msg: "the pod's connections can't be denied: no rule uses ipset weir-pods yet, and " +
				"another plugin has set the pod's link up: " + agentapi.ErrNoAgent.Error(),
			Details: "weir-agent makes the rules when it starts",
		}},
		{
			&attachment.NoAgentError{},
			types.Error{Code: 50, Msg: "no weir-agent has been ready since the node was started", Details: strictDetails},
		},
		{
			&attachment.NoAgentError{For: 61 * time.Second},
			types.Error{Code: 50, Msg: "weir-agent has not been ready for 1m1s", Details: strictDetails},
		},
		{
			&attachment.LeftoverError{Cause: held, Err: disk},
			types.Error{Code: 11, Msg: held.Error(), Details: freeDetails + "; left behind until DEL: no space left on device"},
		},
		{ // a cause without details
			&attachment.LeftoverError{Cause: &attachment.StepError{Step: "reserve addresses", Err: disk}, Err: disk},
			types.Error{
				Code:    5,
				Msg:     "reserve addresses: no space left on device",
				Details: "left behind until DEL: no space left on device",
			},
		},
		{errors.New("stdout is closed"), types.Error{Code: 5, Msg: "stdout is closed"}},
		{refuse(7, "prevResult is missing"), types.Error{Code: 7, Msg: "prevResult is missing"}},
		{
			&conf.Error{Kind: conf.NotDecoded, Message: "no JSON", Details: "at 5"},
			types.Error{Code: 6, Msg: "no JSON", Details: "at 5"},
		},
		{&conf.Error{Kind: conf.UnknownKey, Message: "x"}, types.Error{Code: 2, Msg: "x"}},
		{&conf.Error{Kind: conf.WrongValue, Message: "mtu"}, types.Error{Code: 7, Msg: "mtu"}},
		{&conf.Error{Kind: conf.WrongVariable, Message: "CNI_ARGS"}, types.Error{Code: 4, Msg: "CNI_ARGS"}},
	} {
		if diff := cmp.Diff(tc.want, *cniError(errors.Join(tc.err))); diff != "" {
			t.Errorf("%v: %s", tc.err, diff)
		}
	}
}
