package agentapi

import (
	"time"

	"github.com/weir-net/weir/endpoint"
)

// PodEvent is a warning event on a pod of this node. Events with the same Key become one Event object with a count.
type PodEvent struct {
	Key          string
	Pod          endpoint.Pod
	Reason, Note string // Reason is in CamelCase
	Count        uint64
	First, Last  time.Time
}
