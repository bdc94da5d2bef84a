import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicLong;

/** An HTTP server in a JVM: connections that stay, a pool of threads, compiled code, a heap that is collected. */
public final class Server {
    private static final int KEYS = 20_000;
    private static volatile String wrong;

    private static void churn(Map<String, long[]> known, AtomicLong turns) {
        byte[][] garbage = new byte[64][];
        while (true) {
            long turn = turns.incrementAndGet();
            for (int n = (int) (turn % 7); n < KEYS; n += 7) {
                long[] found = known.get("key-" + n);
                if (found == null || found[0] != n || found[1] != (long) n * n) {
                    wrong = "key-" + n + " has changed";
                }
                known.put("key-" + n, new long[] {n, (long) n * n});
            }
            garbage[(int) (turn % garbage.length)] = new byte[64 << 10];
            try {
                Thread.sleep(5);
            } catch (InterruptedException error) {
                wrong = "interrupted";
            }
        }
    }

    public static void main(String[] arguments) throws Exception {
        int words = 16384;
        byte[] content = new byte[words * 4];
        for (int n = 0; n < words; n++) {
            int value = n * (int) 2_654_435_761L;
            for (int at = 0; at < 4; at++) {
                content[n * 4 + at] = (byte) (value >>> (8 * at));
            }
        }
        Map<String, long[]> known = new ConcurrentHashMap<>();
        for (int n = 0; n < KEYS; n++) {
            known.put("key-" + n, new long[] {n, (long) n * n});
        }
        AtomicLong turns = new AtomicLong();
        for (int number = 0; number < 2; number++) {
            Thread thread = new Thread(() -> churn(known, turns), "churn-" + number);
            thread.setDaemon(true);
            thread.start();
        }
        HttpServer server = HttpServer.create(new InetSocketAddress("0.0.0.0", 8080), 64);
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.createContext("/", exchange -> {
            String why = wrong;
            byte[] answer = content;
            if (why != null) {
                answer = why.getBytes(StandardCharsets.UTF_8);
            } else if (exchange.getRequestURI().getPath().equals("/progress")) {
                answer = (turns.get() + "\n").getBytes(StandardCharsets.UTF_8);
            }
            exchange.sendResponseHeaders(why == null ? 200 : 500, answer.length);
            exchange.getResponseBody().write(answer);
            exchange.close();
        });
        server.start();
    }
}
