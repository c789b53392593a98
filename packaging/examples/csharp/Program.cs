// Ask the refit-agent service for an engine from C# (.NET 8, no packages).
//
//   dotnet run -- /opt/app/bundle denoiser
//
// Prints the engine's path on standard output and progress on standard error. Exit code 0: done; 1: the service
// says that it cannot be made; 8: there is no service (run `refit-agent path BUNDLE MODEL`, which needs none).

using System.Net.Http.Json;
using System.Net.Sockets;
using System.Runtime.InteropServices;
using System.Text.Json;

if (args.Length != 2)
{
    Console.Error.WriteLine("usage: RefitAgentExample BUNDLE MODEL");
    return 2;
}

var socketPath = SocketPath();
using var handler = new SocketsHttpHandler
{
    UseProxy = false, // http_proxy is none of this call's business
    ConnectCallback = async (_, cancel) =>
    {
        var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        try
        {
            await socket.ConnectAsync(new UnixDomainSocketEndPoint(socketPath), cancel);
            return new NetworkStream(socket, ownsSocket: true);
        }
        catch
        {
            socket.Dispose();
            throw;
        }
    },
};
using var http = new HttpClient(handler) { BaseAddress = new Uri("http://localhost"), Timeout = Timeout.InfiniteTimeSpan };

// The bundle's path must be absolute. With pid, the lease ends with this process at the latest.
using var request = new HttpRequestMessage(HttpMethod.Post, "/v1/engines:ensure")
{
    Content = JsonContent.Create(new { bundle = Path.GetFullPath(args[0]), model = args[1], ttl_s = 300, pid = Environment.ProcessId }),
};
try
{
    // Headers only: the body is a stream that grows while the engine is made.
    using var response = await http.SendAsync(request, HttpCompletionOption.ResponseHeadersRead);
    using var reader = new StreamReader(await response.Content.ReadAsStreamAsync());
    while (true)
    {
        // The service says something every two seconds: ten without a word mean that it hangs.
        using var patience = new CancellationTokenSource(TimeSpan.FromSeconds(10));
        var line = await reader.ReadLineAsync(patience.Token);
        if (line is null)
            break;
        using var document = JsonDocument.Parse(line);
        var root = document.RootElement;
        if (root.TryGetProperty("path", out var path)) // a hit, or the last event
        {
            Console.WriteLine(path.GetString());
            // ... load the engine here; the lease keeps it from eviction until then ...
            var lease = root.GetProperty("lease").GetProperty("id").GetString();
            using var released = await http.DeleteAsync($"/v1/leases/{lease}");
            return 0;
        }
        if (root.TryGetProperty("detail", out var detail)) // a problem, or the last event
        {
            Console.Error.WriteLine($"{detail.GetString()}\n{root.GetProperty("hint").GetString()}");
            return 1;
        }
        Console.Error.WriteLine($"{root.GetProperty("fraction").GetDouble(),4:P0} {root.GetProperty("text").GetString()}");
    }
    Console.Error.WriteLine("the service ended in the middle");
}
catch (Exception error) when (error is HttpRequestException or IOException or OperationCanceledException or SocketException)
{
    Console.Error.WriteLine($"no service at {socketPath}: {error.Message}");
}
return 8;

static string SocketPath()
{
    if (Environment.GetEnvironmentVariable("REFIT_AGENT_SOCKET") is { } given)
        return given;
    if (Environment.GetEnvironmentVariable("REFIT_AGENT_HOME") is { Length: > 0 } home)
        return Path.Combine(home, "run", "agent.sock");
    if (Environment.GetEnvironmentVariable("XDG_RUNTIME_DIR") is { } runtime && Path.IsPathRooted(runtime))
        return Path.Combine(runtime, "refit-agent", "agent.sock");
    var user = $"/run/user/{geteuid()}";
    if (Directory.Exists(user))
        return Path.Combine(user, "refit-agent", "agent.sock");
    if (Environment.GetEnvironmentVariable("XDG_STATE_HOME") is not { Length: > 0 } state)
        state = Path.Combine(Environment.GetFolderPath(Environment.SpecialFolder.UserProfile), ".local", "state");
    return Path.Combine(state, "refit-agent", "run", "agent.sock");
}

[DllImport("libc")]
static extern uint geteuid();
