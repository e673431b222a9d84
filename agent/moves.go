package agent

import (
	"context"

	"github.com/weir-net/weir/endpoint"
)

// beginMove must run before the kernel is changed. From then on the plugin closes new pods in both backends.
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

// endMove removes the other backend's rules. The agent's first rules must already be in force.
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
