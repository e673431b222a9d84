package objects

import (
	"fmt"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weir-net/weir/policy"
)

// TestAddSlice: the conditions of an endpoint say whether it is ready or ending. Missing conditions have the API's
// defaults.
func TestAddSlice(t *testing.T) {
	yes, no := new(true), new(false)
	for want, conditions := range map[string][]discoveryv1.EndpointConditions{
		"ready true, ending false": {
			{}, {Ready: yes}, {Ready: yes, Serving: yes, Terminating: no}, {Ready: yes, Serving: yes, Terminating: yes},
		},
		"ready false, ending true": {
			{Ready: no, Terminating: yes}, {Ready: no, Serving: yes, Terminating: yes},
		},
		"ready false, ending false": {
			{Ready: no}, {Ready: no, Serving: no, Terminating: no}, {Ready: no, Serving: no, Terminating: yes},
		},
	} {
		for _, c := range conditions {
			var s policy.Service
			AddSlice(&s, &discoveryv1.EndpointSlice{
				Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, Conditions: c}},
			})
			if got := fmt.Sprintf("ready %t, ending %t", s.Endpoints[0].Ready, s.Endpoints[0].Ending); got != want {
				t.Errorf("%+v: %s, want %s", c, got, want)
			}
		}
	}
}
