package agent

import (
	"context"

	"github.com/weir-net/weir/endpoint"
)

// beginMove tells the plugin, before the agent changes anything in the kernel, that the node may come to another
// backend. From then on the plugin denies new pods in both backends, and takes ended pods out of both.
func (o Options) beginMove() error {
	if o.BackendName == "" {
		return nil
	}
	before, err := endpoint.ReadBackend()
	if err != nil || before == o.BackendName {
		return err
	}
	return endpoint.WriteBackend("")
}

// endMove removes the other backend's sets and rules, and then tells the plugin the name of the agent's backend. The
// agent calls it after its first rules are in force, so no packet passes unchecked.
func (o Options) endMove(ctx context.Context) error {
	if o.BackendName == "" {
		return nil
	}
	var err error
	if o.RemoveOthers != nil {
		err = o.RemoveOthers(ctx)
	}
	if err == nil {
		err = endpoint.WriteBackend(o.BackendName)
	}
	return err
}
