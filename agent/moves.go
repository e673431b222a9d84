package agent

import (
	"context"

	"github.com/weir-net/weir/endpoint"
)

// beginMove tells the plugin that the node may get another backend. From then on the plugin denies new pods in both
// backends. It must be called before the kernel is changed.
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

// endMove removes the other backend's sets and rules, and then tells the plugin the new backend's name. The agent's
// first rules must be in force, so no packet passes unchecked.
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
