package explain

import "github.com/weir-net/weir/policy"

// Question is what weirctl asks an agent: the arguments of Parse, and Services that the agent doesn't know.
type Question struct {
	From      string           `json:"from"`
	To        string           `json:"to"`
	Namespace string           `json:"namespace,omitempty"`
	Services  []policy.Service `json:"services,omitempty"`
}
