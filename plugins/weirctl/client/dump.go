package client

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"time"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/internal/excerpt"
)

// Dump writes a support bundle, a tar.gz with the status of each node. It has no token, no environment and no
// object of the API server.
func (c *Cluster) Dump(
	ctx context.Context, out io.Writer, o AskOptions, p *Progress, version string,
) (s *ClusterStatus, err error) {
	agents, err := c.Agents(ctx)
	if err != nil {
		return nil, err
	}
	zipped := gzip.NewWriter(out)
	bundle := tar.NewWriter(zipped)
	defer func() { err = errors.Join(err, bundle.Close(), zipped.Close()) }()
	if err := addFile(bundle, "version.json", map[string]string{"weirctl": version}); err != nil {
		return nil, err
	}
	s = NewClusterStatus(len(agents))
	var failed error
	err = AskAll(ctx, agents, o, func(ctx context.Context, of Agent) (a dumped, err error) {
		if err := c.Ask(ctx, of, agentapi.StatusPath, nil, &a.status); err != nil {
			return a, err
		}
		return a, c.Ask(ctx, of, agentapi.SummaryPath, nil, &a.summary)
	}, func(a Answer[dumped]) {
		s.Add(Answer[*agentapi.Summary]{a.Agent, &a.Value.summary, a.Err})
		if a.Err == nil && failed == nil {
			failed = addFile(bundle, "nodes/"+a.Node+".json", a.Value.status)
		}
		p.Say("%d of %d nodes: %s", len(s.Nodes), len(agents), s.Counts())
	})
	if err = errors.Join(err, failed); err != nil {
		return s, err
	}
	return s, addFile(bundle, "cluster.json", s)
}

type dumped struct {
	status  agentapi.Status
	summary agentapi.Summary
}

func addFile(bundle *tar.Writer, name string, v any) error {
	var text bytes.Buffer
	if err := excerpt.WriteJSON(&text, "  ", v); err != nil {
		return err
	}
	const readable = 0o644
	header := tar.Header{
		Name: "weir/" + name, Mode: readable, Size: int64(text.Len()), ModTime: time.Now(), Typeflag: tar.TypeReg,
	}
	if err := bundle.WriteHeader(&header); err != nil {
		return err
	}
	_, err := bundle.Write(text.Bytes())
	return err
}
